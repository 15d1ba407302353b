//! The config-maps of the platform: a mistake is refused when it is made (fact A7.4).

use neap_api::keys::config;
use serde_json::Value;

use super::field_error::Errors;
use super::view::{pairs, text};
use crate::config::{Data, EXAMPLE_CHECKSUM, EXAMPLE_KEY, Settings, checksum};

/// Whether a config-map is one of the platform's.
pub(super) fn is_ours(value: &Value) -> bool {
    text(&value["metadata"], "namespace") == config::NAMESPACE
        && text(&value["metadata"], "name").starts_with("config-")
}

pub(super) fn validate(value: &Value) -> Errors {
    let data: Data = pairs(&value["data"]).map(|(k, v)| (k.to_owned(), v.to_owned())).collect();
    let mut errors = Errors::none();
    for mistake in Settings::check_map(text(&value["metadata"], "name"), &data) {
        errors.add(Errors::of(mistake.problem, &[&mistake.key]).via_field("data"));
    }
    let noted = value["metadata"]["annotations"][EXAMPLE_CHECKSUM].as_str();
    if let (Some(example), Some(noted)) = (data.get(EXAMPLE_KEY), noted) {
        let found = checksum(example);
        if found != noted {
            let message = format!(
                "the update modifies a key in {EXAMPLE_KEY:?} which is probably not what you want. Instead, copy the respective setting to the top-level of the ConfigMap, directly below \"data\" (checksum {found}, want {noted})"
            );
            errors.add(Errors::of(message, &[EXAMPLE_KEY]).via_field("data"));
        }
    }
    errors
}
