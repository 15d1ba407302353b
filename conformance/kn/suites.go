//go:build suites

// Package kn names what of kn is built here, so that go.mod and go.sum pin it.
package kn

import (
	_ "knative.dev/client/cmd/kn"
	_ "knative.dev/client/test/e2e"
	_ "knative.dev/serving/test/test_images/grpc-ping"
	_ "knative.dev/client/test/test_images/helloworld"
)
