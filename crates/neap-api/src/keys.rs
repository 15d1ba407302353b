//! Names of labels, annotations, headers and config-maps, spelled once. Facts: section C.

/// Labels and annotations of `serving.knative.dev` (C1).
pub mod serving {
    /// Label: the parent Configuration.
    pub const CONFIGURATION: &str = "serving.knative.dev/configuration";
    /// Label: the Configuration's generation a Revision was stamped from.
    pub const CONFIGURATION_GENERATION: &str = "serving.knative.dev/configurationGeneration";
    /// Label: UID of the parent Configuration.
    pub const CONFIGURATION_UID: &str = "serving.knative.dev/configurationUID";
    /// Label: the parent Service.
    pub const SERVICE: &str = "serving.knative.dev/service";
    /// Label: UID of the parent Service.
    pub const SERVICE_UID: &str = "serving.knative.dev/serviceUID";
    /// Label: the Revision.
    pub const REVISION: &str = "serving.knative.dev/revision";
    /// Label: UID of the Revision; what Deployments and Services select by.
    pub const REVISION_UID: &str = "serving.knative.dev/revisionUID";
    /// Label: the Route.
    pub const ROUTE: &str = "serving.knative.dev/route";
    /// Label: the Route's namespace.
    pub const ROUTE_NAMESPACE: &str = "serving.knative.dev/routeNamespace";
    /// Label: `pending`, `active` or `reserve`.
    pub const ROUTING_STATE: &str = "serving.knative.dev/routingState";
    /// Annotation: when the routing state changed last (RFC 3339).
    pub const ROUTING_STATE_MODIFIED: &str = "serving.knative.dev/routingStateModified";
    /// Annotation: comma-separated Routes that refer to the object.
    pub const ROUTES: &str = "serving.knative.dev/routes";
    /// Annotation: who created the object.
    pub const CREATOR: &str = "serving.knative.dev/creator";
    /// Annotation: who changed the spec last.
    pub const LAST_MODIFIER: &str = "serving.knative.dev/lastModifier";
    /// Annotation: duration of a gradual rollout.
    pub const ROLLOUT_DURATION: &str = "serving.knative.dev/rollout-duration";
    /// Older spelling of the rollout duration.
    pub const ROLLOUT_DURATION_ALT: &str = "serving.knative.dev/rolloutDuration";
    /// Annotation: "true" keeps a Revision from being collected.
    pub const NO_GC: &str = "serving.knative.dev/no-gc";
    /// Annotation of an older garbage collector.
    pub const LAST_PINNED: &str = "serving.knative.dev/lastPinned";
    /// Annotation: how long a Revision may take to become available.
    pub const PROGRESS_DEADLINE: &str = "serving.knative.dev/progress-deadline";
    /// Label: hash of what Neap wants of a Deployment.
    pub const DEPLOYMENT_HASH: &str = "serving.knative.dev/deployment-hash";
    /// Label: UID of the DomainMapping.
    pub const DOMAIN_MAPPING_UID: &str = "serving.knative.dev/domainMappingUID";
    /// Label: namespace of the DomainMapping.
    pub const DOMAIN_MAPPING_NAMESPACE: &str = "serving.knative.dev/domainMappingNamespace";
    /// Label of Deployments and Pods: the Revision's name unless the user set it.
    pub const APP: &str = "app";
    /// Annotation: the container `kubectl logs` takes.
    pub const DEFAULT_CONTAINER: &str = "kubectl.kubernetes.io/default-container";
    /// Annotation of client-side apply; never copied down.
    pub const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";
}

/// Annotations of `autoscaling.knative.dev` (C2).
pub mod autoscaling {
    /// Prefix of all autoscaling annotations.
    pub const GROUP: &str = "autoscaling.knative.dev";
    /// Which autoscaler.
    pub const CLASS: &str = "autoscaling.knative.dev/class";
    /// What is measured.
    pub const METRIC: &str = "autoscaling.knative.dev/metric";
    /// The wanted value per instance.
    pub const TARGET: &str = "autoscaling.knative.dev/target";
    /// How much of the target is aimed at, percent.
    pub const TARGET_UTILIZATION: &str = "autoscaling.knative.dev/target-utilization-percentage";
    /// Older spelling.
    pub const TARGET_UTILIZATION_ALT: &str = "autoscaling.knative.dev/targetUtilizationPercentage";
    /// Requests that must fit beside the present ones.
    pub const TARGET_BURST_CAPACITY: &str = "autoscaling.knative.dev/target-burst-capacity";
    /// Older spelling.
    pub const TARGET_BURST_CAPACITY_ALT: &str = "autoscaling.knative.dev/targetBurstCapacity";
    /// Fewest instances.
    pub const MIN_SCALE: &str = "autoscaling.knative.dev/min-scale";
    /// Older spelling.
    pub const MIN_SCALE_ALT: &str = "autoscaling.knative.dev/minScale";
    /// Most instances; 0 is no bound.
    pub const MAX_SCALE: &str = "autoscaling.knative.dev/max-scale";
    /// Older spelling.
    pub const MAX_SCALE_ALT: &str = "autoscaling.knative.dev/maxScale";
    /// Instances a new Revision must reach once.
    pub const INITIAL_SCALE: &str = "autoscaling.knative.dev/initial-scale";
    /// Older spelling.
    pub const INITIAL_SCALE_ALT: &str = "autoscaling.knative.dev/initialScale";
    /// Fewest instances when not at zero.
    pub const ACTIVATION_SCALE: &str = "autoscaling.knative.dev/activation-scale";
    /// The stable window.
    pub const WINDOW: &str = "autoscaling.knative.dev/window";
    /// The panic window, percent of the stable one.
    pub const PANIC_WINDOW: &str = "autoscaling.knative.dev/panic-window-percentage";
    /// Older spelling.
    pub const PANIC_WINDOW_ALT: &str = "autoscaling.knative.dev/panicWindowPercentage";
    /// Load, percent of capacity, that starts the panic mode.
    pub const PANIC_THRESHOLD: &str = "autoscaling.knative.dev/panic-threshold-percentage";
    /// Older spelling.
    pub const PANIC_THRESHOLD_ALT: &str = "autoscaling.knative.dev/panicThresholdPercentage";
    /// How long a lower load must last.
    pub const SCALE_DOWN_DELAY: &str = "autoscaling.knative.dev/scale-down-delay";
    /// Older spelling.
    pub const SCALE_DOWN_DELAY_ALT: &str = "autoscaling.knative.dev/scaleDownDelay";
    /// How long the last instance stays.
    pub const RETENTION: &str = "autoscaling.knative.dev/scale-to-zero-pod-retention-period";
    /// Older spelling.
    pub const RETENTION_ALT: &str = "autoscaling.knative.dev/scaleToZeroPodRetentionPeriod";
    /// `linear` or `weighted-exponential`.
    pub const AGGREGATION: &str = "autoscaling.knative.dev/metric-aggregation-algorithm";
    /// Older spelling.
    pub const AGGREGATION_ALT: &str = "autoscaling.knative.dev/metricAggregationAlgorithm";
    /// The class served by Neap's own autoscaler.
    pub const CLASS_KPA: &str = "kpa.autoscaling.knative.dev";
    /// The class served by a HorizontalPodAutoscaler.
    pub const CLASS_HPA: &str = "hpa.autoscaling.knative.dev";
}

/// Labels and annotations of `networking.knative.dev` (C3).
pub mod networking {
    /// Prefix of the annotations users may set.
    pub const PUBLIC_GROUP: &str = "networking.knative.dev";
    /// Annotation: which ingress implementation.
    pub const INGRESS_CLASS: &str = "networking.knative.dev/ingress.class";
    /// Newer spelling.
    pub const INGRESS_CLASS_ALT: &str = "networking.knative.dev/ingress-class";
    /// Annotation: which certificate implementation.
    pub const CERTIFICATE_CLASS: &str = "networking.knative.dev/certificate.class";
    /// Newer spelling.
    pub const CERTIFICATE_CLASS_ALT: &str = "networking.knative.dev/certificate-class";
    /// Annotation: no certificate for this Route.
    pub const DISABLE_TLS: &str = "networking.knative.dev/disable-external-domain-tls";
    /// Older spelling.
    pub const DISABLE_AUTO_TLS: &str = "networking.knative.dev/disable-auto-tls";
    /// Oldest spelling.
    pub const DISABLE_AUTO_TLS_ALT: &str = "networking.knative.dev/disableAutoTLS";
    /// Annotation: `enabled` or `redirected`.
    pub const HTTP_PROTOCOL: &str = "networking.knative.dev/http-protocol";
    /// Older spelling.
    pub const HTTP_OPTION: &str = "networking.knative.dev/httpOption";
    /// Label: `cluster-local` keeps a Route from the outside.
    pub const VISIBILITY: &str = "networking.knative.dev/visibility";
    /// The value of the visibility label.
    pub const VISIBILITY_CLUSTER_LOCAL: &str = "cluster-local";
    /// Label of a namespace's wildcard certificate.
    pub const WILDCARD_DOMAIN: &str = "networking.knative.dev/wildcardDomain";
    /// Label: what a certificate is for.
    pub const CERTIFICATE_TYPE: &str = "networking.knative.dev/certificate-type";
    /// Annotation: state of a gradual rollout, JSON.
    pub const ROLLOUT: &str = "networking.internal.knative.dev/rollout";
    /// Annotation: hosts by tag, JSON.
    pub const TAG_TO_HOST: &str = "networking.internal.knative.dev/tag-to-host";
    /// Label: the ServerlessService.
    pub const SERVERLESS_SERVICE: &str = "networking.internal.knative.dev/serverlessservice";
    /// Label: `Public` or `Private`.
    pub const SERVICE_TYPE: &str = "networking.internal.knative.dev/serviceType";
    /// Label: the Ingress.
    pub const INGRESS: &str = "networking.internal.knative.dev/ingress";
    /// Label: the traffic tag.
    pub const TAG: &str = "networking.internal.knative.dev/tag";
    /// The class Neap's gateway carries out.
    pub const NEAP_INGRESS_CLASS: &str = "neap.ingress.networking.knative.dev";
    /// The class of certificates that Neap makes itself, by ACME or by its local authority.
    pub const NEAP_CERTIFICATE_CLASS: &str = "neap.certificate.networking.knative.dev";
    /// Label of a Secret: the Certificate it was made for.
    pub const CERTIFICATE_UID: &str = "networking.internal.knative.dev/certificate-uid";
    /// Label of a ConfigMap with authorities to trust.
    pub const TRUST_BUNDLE: &str = "networking.knative.dev/trust-bundle";
}

/// Header names (C4).
pub mod headers {
    /// The Revision a split leads to.
    pub const REVISION: &str = "knative-serving-revision";
    /// Its namespace.
    pub const NAMESPACE: &str = "knative-serving-namespace";
    /// The traffic tag asked for.
    pub const TAG: &str = "knative-serving-tag";
    /// `true` on the default route when tags are routed by header.
    pub const DEFAULT_ROUTE: &str = "knative-serving-default-route";
    /// `probe`, `activator` or `queue`.
    pub const PROBE: &str = "k-network-probe";
    /// `override` in, the configuration's hash out.
    pub const HASH: &str = "k-network-hash";
    /// Marks a request that came through an activator.
    pub const PROXY_REQUEST: &str = "k-proxy-request";
    /// The Host before a rewrite.
    pub const ORIGINAL_HOST: &str = "k-original-host";
    /// Marks a probe of a kubelet.
    pub const KUBELET_PROBE: &str = "k-kubelet-probe";
    /// Asks for one pod in a mesh.
    pub const PASSTHROUGH_LB: &str = "k-passthrough-lb";
}

/// Names of our own.
pub mod neap {
    /// Label of the gateway's Service; `external` on the public one.
    pub const GATEWAY: &str = "neap.dev/gateway";
    /// Annotation of a Pod without a network of its own: JSON, port name to real port.
    pub const PORTS: &str = "neap.dev/ports";
    /// Annotation: the words an object of an old API version was written in, where v1 has none for them; JSON.
    pub const WRITTEN_AS: &str = "neap.dev/written-as";
    /// Annotation of a Service: `manual` when it owns nothing, and says nothing of what to run.
    pub const SERVICE_MODE: &str = "neap.dev/service-mode";
    /// The value of the annotation.
    pub const SERVICE_MODE_MANUAL: &str = "manual";
    /// Prefix of all of them.
    pub const PREFIX: &str = "neap.dev/";
    /// Annotation of a Service, Route or DomainMapping: what keeps a client at one instance.
    pub const SESSION_AFFINITY: &str = "neap.dev/session-affinity";
    /// Annotation of a Service, Route or DomainMapping: how many requests, such as `100/s burst 20`.
    pub const RATE_LIMIT: &str = "neap.dev/rate-limit";
    /// Annotation: by what requests are told apart for the limit.
    pub const RATE_LIMIT_BY: &str = "neap.dev/rate-limit-by";
    /// Annotation of a Service, Route or DomainMapping: when a second instance is asked too.
    pub const HEDGE_AFTER: &str = "neap.dev/hedge-after";
    /// Annotation of a Service, Route or DomainMapping: `key` or `jwt`.
    pub const AUTH: &str = "neap.dev/auth";
    /// Annotation: the Secret with the keys.
    pub const AUTH_SECRET: &str = "neap.dev/auth-secret";
    /// Annotation: who must have made a token.
    pub const AUTH_ISSUER: &str = "neap.dev/auth-issuer";
    /// Annotation: for whom a token must be made, several separated by commas.
    pub const AUTH_AUDIENCE: &str = "neap.dev/auth-audience";
    /// Annotation: where the issuer's keys are, if not where its configuration says.
    pub const AUTH_JWKS: &str = "neap.dev/auth-jwks";
    /// Annotation: claims passed on in headers, `claim=header`, separated by commas.
    pub const AUTH_CLAIMS: &str = "neap.dev/auth-claims";
    /// Annotation: claims a token must have, `claim=value|value`, separated by commas.
    pub const AUTH_REQUIRE: &str = "neap.dev/auth-require";
    /// Annotation of a DomainMapping (to services) or of a Service or Route (to tags): a list of matches in YAML.
    pub const ROUTES: &str = "neap.dev/routes";
    /// Annotation of a DomainMapping: "true" serves all names below it too.
    pub const WILDCARD: &str = "neap.dev/wildcard";
    /// Annotation of an Ingress: what of its paths its spec cannot say; JSON.
    pub const PATHS: &str = "neap.dev/paths";
    /// Type of a Secret that holds keys callers may show.
    pub const AUTH_KEYS_TYPE: &str = "neap.dev/auth-keys";
    /// Annotation of an order's Secret: the Certificate it is for, namespace/name.
    pub const CERTIFICATE: &str = "neap.dev/certificate";
    /// Annotation of an account's Secret: the authority's directory, and the address it was told.
    pub const ACME_DIRECTORY: &str = "neap.dev/acme-directory";
    /// See [`ACME_DIRECTORY`].
    pub const ACME_EMAIL: &str = "neap.dev/acme-email";
    /// Annotation of a certificate's Secret: who issued it.
    pub const ISSUER: &str = "neap.dev/issuer";
    /// The local authority: the Secret with its key, and the ConfigMap with what to trust, under `ca.crt`.
    pub const LOCAL_AUTHORITY: &str = "neap-ca";
}

/// The namespace and config-maps.
pub mod config {
    /// The namespace of the platform's own objects.
    pub const NAMESPACE: &str = "knative-serving";
    /// Autoscaler settings.
    pub const AUTOSCALER: &str = "config-autoscaler";
    /// Defaults of revisions.
    pub const DEFAULTS: &str = "config-defaults";
    /// Deployment settings.
    pub const DEPLOYMENT: &str = "config-deployment";
    /// Domains by label.
    pub const DOMAIN: &str = "config-domain";
    /// Feature flags.
    pub const FEATURES: &str = "config-features";
    /// Garbage collection of revisions.
    pub const GC: &str = "config-gc";
    /// Leader election.
    pub const LEADER_ELECTION: &str = "config-leader-election";
    /// Log levels.
    pub const LOGGING: &str = "config-logging";
    /// Network settings.
    pub const NETWORK: &str = "config-network";
    /// Logs, metrics, traces.
    pub const OBSERVABILITY: &str = "config-observability";
    /// Deprecated and empty.
    pub const TRACING: &str = "config-tracing";
    /// Issuers.
    pub const CERTMANAGER: &str = "config-certmanager";
    /// Settings of our own.
    pub const NEAP: &str = "config-neap";
}

#[cfg(test)]
mod tests {
    use super::headers;

    /// C4: the names of headers; HTTP does not tell capitals from small letters.
    #[test]
    fn c4_1_c4_2_c4_3_c4_4_c4_5_c4_6_c4_7_c4_8_c4_9_headers() {
        let rows = [
            ("Knative-Serving-Revision", headers::REVISION),
            ("Knative-Serving-Namespace", headers::NAMESPACE),
            ("Knative-Serving-Tag", headers::TAG),
            ("Knative-Serving-Default-Route", headers::DEFAULT_ROUTE),
            ("K-Network-Probe", headers::PROBE),
            ("K-Network-Hash", headers::HASH),
            ("K-Proxy-Request", headers::PROXY_REQUEST),
            ("K-Original-Host", headers::ORIGINAL_HOST),
            ("K-Kubelet-Probe", headers::KUBELET_PROBE),
            ("K-Passthrough-Lb", headers::PASSTHROUGH_LB),
        ];
        for (fact, name) in rows {
            assert_eq!(name, fact.to_lowercase());
        }
    }
}
