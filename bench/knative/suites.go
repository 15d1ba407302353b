//go:build suites

// Package knative names what is built for the comparison, so that go.mod and go.sum pin it.
package knative

import (
	_ "knative.dev/serving/cmd/activator"
	_ "knative.dev/serving/cmd/queue"
)
