//! What the status of every Knative kind begins with (A1.1).
//!
//! A macro and not a flattened struct: serde decodes flattened fields by way of a copy of the whole object, and every
//! watch event carries a status.

/// Declares a kind's status: the common fields, then its own.
macro_rules! status {
    ($(#[$about:meta])* pub struct $name:ident { $($own:tt)* }) => {
        $(#[$about])*
        #[derive(Clone, Debug, Default, PartialEq, serde::Serialize, serde::Deserialize, schemars::JsonSchema)]
        #[serde(rename_all = "camelCase")]
        pub struct $name {
            /// The generation of the spec this status speaks of.
            #[serde(default, skip_serializing_if = "crate::status::is_zero")]
            pub observed_generation: i64,
            /// The latest observations of the object's state.
            #[serde(default, skip_serializing_if = "Vec::is_empty")]
            pub conditions: Vec<crate::condition::Condition>,
            /// Additional fields for tools.
            #[serde(default, skip_serializing_if = "std::collections::BTreeMap::is_empty")]
            pub annotations: std::collections::BTreeMap<String, String>,
            $($own)*
        }
    };
}
pub(crate) use status;

/// For `skip_serializing_if` of generations.
pub(crate) fn is_zero(n: &i64) -> bool {
    *n == 0
}
