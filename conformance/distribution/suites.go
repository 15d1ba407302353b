//go:build suites

// Package distribution names what is built here, so that go.mod and go.sum pin it.
package distribution

import _ "github.com/opencontainers/distribution-spec/conformance"
