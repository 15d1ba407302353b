//! `config-features`: which optional parts of the API are open.

use super::reader::{Data, Mistake, Reader};

/// The config-map's name.
pub const MAP: &str = "config-features";

/// Whether a feature is open.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flag {
    /// On for everybody.
    Enabled,
    /// Off, unless an object asks for it.
    Allowed,
    /// Off; using it is an error.
    Disabled,
}

impl Flag {
    /// Whether an object may use the feature.
    pub fn is_open(self) -> bool {
        self != Flag::Disabled
    }
}

/// How far the platform fills in a pod's security settings.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SecurePodDefaults {
    /// Nothing is filled in.
    Disabled,
    /// Everything but `runAsNonRoot`.
    AllowRootBounded,
    /// Everything.
    Enabled,
}

macro_rules! features {
    ($($(#[$doc:meta])* $field:ident = $key:literal, $default:ident;)*) => {
        /// The feature flags, each named after its key.
        #[derive(Debug, Clone, PartialEq, Eq)]
        pub struct Features {
            $($(#[$doc])* pub $field: Flag,)*
            /// `secure-pod-defaults`.
            pub secure_pod_defaults: SecurePodDefaults,
        }

        impl Default for Features {
            fn default() -> Self {
                Self { $($field: Flag::$default,)* secure_pod_defaults: SecurePodDefaults::Disabled }
            }
        }

        /// Each flag's key and Knative's default.
        pub const FLAGS: &[(&str, Flag)] = &[$(($key, Flag::$default),)*];

        pub(super) fn parse(data: &Data, mistakes: &mut Vec<Mistake>) -> Features {
            let mut r = Reader::new(MAP, data, mistakes);
            Features {
                $($field: r.with(&[$key], Flag::$default, "enabled, allowed or disabled", flag),)*
                secure_pod_defaults: r.with(
                    &["secure-pod-defaults"],
                    SecurePodDefaults::Disabled,
                    "disabled, allowrootbounded or enabled",
                    secure,
                ),
            }
        }
    };
}

features! {
    /// More than one container in a revision.
    multi_container = "multi-container", Enabled;
    /// Probes on containers that serve no port.
    multi_container_probing = "multi-container-probing", Disabled;
    /// Routing by the header `Knative-Serving-Tag`.
    tag_header_based_routing = "tag-header-based-routing", Disabled;
    /// Finding out whether a container speaks HTTP/2.
    autodetect_http2 = "autodetect-http2", Disabled;
    /// `spec.affinity`.
    podspec_affinity = "kubernetes.podspec-affinity", Disabled;
    /// `spec.topologySpreadConstraints`.
    podspec_topology_spread_constraints = "kubernetes.podspec-topologyspreadconstraints", Disabled;
    /// `spec.hostAliases`.
    podspec_host_aliases = "kubernetes.podspec-hostaliases", Disabled;
    /// `spec.nodeSelector`.
    podspec_node_selector = "kubernetes.podspec-nodeselector", Disabled;
    /// `spec.tolerations`.
    podspec_tolerations = "kubernetes.podspec-tolerations", Disabled;
    /// `fieldRef` and `resourceFieldRef` in environment variables.
    podspec_field_ref = "kubernetes.podspec-fieldref", Disabled;
    /// `spec.runtimeClassName`.
    podspec_runtime_class_name = "kubernetes.podspec-runtimeclassname", Disabled;
    /// `spec.dnsPolicy`.
    podspec_dns_policy = "kubernetes.podspec-dnspolicy", Disabled;
    /// `spec.dnsConfig`.
    podspec_dns_config = "kubernetes.podspec-dnsconfig", Disabled;
    /// `spec.securityContext`.
    podspec_security_context = "kubernetes.podspec-securitycontext", Disabled;
    /// `spec.shareProcessNamespace`.
    podspec_share_process_namespace = "kubernetes.podspec-shareprocessnamespace", Disabled;
    /// `spec.hostIPC`.
    podspec_host_ipc = "kubernetes.podspec-hostipc", Disabled;
    /// `spec.hostPID`.
    podspec_host_pid = "kubernetes.podspec-hostpid", Disabled;
    /// `spec.hostNetwork`.
    podspec_host_network = "kubernetes.podspec-hostnetwork", Disabled;
    /// `spec.priorityClassName`.
    podspec_priority_class_name = "kubernetes.podspec-priorityclassname", Disabled;
    /// `spec.schedulerName`.
    podspec_scheduler_name = "kubernetes.podspec-schedulername", Disabled;
    /// `spec.initContainers`.
    podspec_init_containers = "kubernetes.podspec-init-containers", Disabled;
    /// Volumes of kind `persistentVolumeClaim`, read only.
    podspec_persistent_volume_claim = "kubernetes.podspec-persistent-volume-claim", Disabled;
    /// Writing to volumes of kind `persistentVolumeClaim`.
    podspec_persistent_volume_write = "kubernetes.podspec-persistent-volume-write", Disabled;
    /// Volumes of kind `emptyDir`.
    podspec_volumes_empty_dir = "kubernetes.podspec-volumes-emptydir", Enabled;
    /// Volumes of kind `hostPath`.
    podspec_volumes_host_path = "kubernetes.podspec-volumes-hostpath", Disabled;
    /// Volumes of kind `csi`.
    podspec_volumes_csi = "kubernetes.podspec-volumes-csi", Disabled;
    /// Volumes of kind `ephemeral`.
    podspec_volumes_ephemeral = "kubernetes.podspec-volumes-ephemeral", Disabled;
    /// Volumes of kind `image`.
    podspec_volumes_image = "kubernetes.podspec-volumes-image", Disabled;
    /// `mountPropagation` of a volume mount.
    podspec_volumes_mount_propagation = "kubernetes.podspec-volumes-mount-propagation", Disabled;
    /// `capabilities.add` of a container.
    containerspec_add_capabilities = "kubernetes.containerspec-addcapabilities", Disabled;
    /// The pod's annotations mounted into the sidecar.
    queueproxy_mount_podinfo = "queueproxy.mount-podinfo", Disabled;
    /// Limits for the sidecar where none are set.
    queueproxy_resource_defaults = "queueproxy.resource-defaults", Disabled;
}

fn flag(text: &str) -> Option<Flag> {
    match text.to_ascii_lowercase().as_str() {
        "enabled" => Some(Flag::Enabled),
        "allowed" => Some(Flag::Allowed),
        "disabled" => Some(Flag::Disabled),
        _ => None,
    }
}

fn secure(text: &str) -> Option<SecurePodDefaults> {
    match text.to_ascii_lowercase().as_str() {
        "enabled" => Some(SecurePodDefaults::Enabled),
        "allowrootbounded" => Some(SecurePodDefaults::AllowRootBounded),
        "disabled" => Some(SecurePodDefaults::Disabled),
        _ => None,
    }
}
