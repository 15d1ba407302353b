//go:build suites

// Package suites names what of Knative's modules we build, so that `go mod tidy` puts all of it into go.sum. It is never
// compiled itself: programs cannot be imported. `run` builds the packages.
package suites

import (
	// The suites.
	_ "knative.dev/networking/test/conformance/ingress"
	_ "knative.dev/serving/test/conformance/api/v1"
	_ "knative.dev/serving/test/conformance/api/v1beta1"
	_ "knative.dev/serving/test/conformance/runtime"
	_ "knative.dev/serving/test/e2e/domainmapping"
	_ "knative.dev/serving/test/e2e/gc"
	_ "knative.dev/serving/test/e2e/initcontainers"
	_ "knative.dev/serving/test/e2e/initscale"
	_ "knative.dev/serving/test/e2e/multicontainerprobing"
	_ "knative.dev/serving/test/e2e/pvc"
	_ "knative.dev/serving/test/e2e/securedefaults"
	_ "knative.dev/serving/test/e2e/tagheader"

	// The programs of their images.
	_ "knative.dev/networking/test/test_images/grpc-ping"
	_ "knative.dev/networking/test/test_images/httpproxy"
	_ "knative.dev/networking/test/test_images/retry"
	_ "knative.dev/networking/test/test_images/runtime"
	_ "knative.dev/networking/test/test_images/timeout"
	_ "knative.dev/networking/test/test_images/wsserver"
	_ "knative.dev/serving/test/test_images/autoscale"
	_ "knative.dev/serving/test/test_images/failing"
	_ "knative.dev/serving/test/test_images/grpc-ping"
	_ "knative.dev/serving/test/test_images/hellovolume"
	_ "knative.dev/serving/test/test_images/helloworld"
	_ "knative.dev/serving/test/test_images/multicontainer/servingcontainer"
	_ "knative.dev/serving/test/test_images/multicontainer/sidecarcontainer"
	_ "knative.dev/serving/test/test_images/pizzaplanetv1"
	_ "knative.dev/serving/test/test_images/pizzaplanetv2"
	_ "knative.dev/serving/test/test_images/readiness"
	_ "knative.dev/serving/test/test_images/runtime"
	_ "knative.dev/serving/test/test_images/singlethreaded"
	_ "knative.dev/serving/test/test_images/timeout"
	_ "knative.dev/serving/test/test_images/volumes"
)
