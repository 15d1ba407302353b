//! What an old object said that v1 has no place for, as an annotation of the stored object.
//!
//! It holds forms and not values wherever a value is in the v1 object too, so that it cannot contradict an edit.

use std::collections::BTreeSet;

use neap_api::keys::neap;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// How an object was written.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct Memo {
    /// Which of the old ways to describe a Service.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) form: Option<Form>,
    /// `rolloutPercent: 0` was spelled out.
    #[serde(skip_serializing_if = "is_default")]
    pub(super) zero_percent: bool,
    /// `spec.generation`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) generation: Option<i64>,
    /// Tags that were written as `name`.
    #[serde(skip_serializing_if = "BTreeSet::is_empty")]
    pub(super) named: BTreeSet<String>,
    /// The Configuration, or the one inside a Service.
    #[serde(skip_serializing_if = "is_default")]
    pub(super) configuration: ConfigurationMemo,
    /// The Revision.
    #[serde(skip_serializing_if = "is_default")]
    pub(super) revision: RevisionMemo,
}

/// The ways to describe a Service that v1 replaced by traffic targets. `manual` is not among them: it means something to
/// the controllers, and has an annotation of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) enum Form {
    RunLatest,
    Release,
    Pinned,
}

impl Form {
    pub(super) const ALL: [Form; 3] = [Form::RunLatest, Form::Release, Form::Pinned];

    pub(super) fn field(self) -> &'static str {
        match self {
            Self::RunLatest => "runLatest",
            Self::Release => "release",
            Self::Pinned => "pinned",
        }
    }
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct ConfigurationMemo {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) generation: Option<i64>,
    /// `revisionTemplate` was written where v1 says `template`.
    #[serde(skip_serializing_if = "is_default")]
    pub(super) revision_template: bool,
    #[serde(skip_serializing_if = "is_default")]
    pub(super) revision: RevisionMemo,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct RevisionMemo {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) generation: Option<i64>,
    /// `container` was written where v1 says `containers`.
    #[serde(skip_serializing_if = "is_default")]
    pub(super) container: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) concurrency_model: Option<ConcurrencyModel>,
    /// `containerConcurrency` follows from the model and was not written.
    #[serde(skip_serializing_if = "is_default")]
    pub(super) implied_concurrency: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) serving_state: Option<ServingState>,
    /// The routing state's label follows from the serving state and was not written.
    #[serde(skip_serializing_if = "is_default")]
    pub(super) labelled: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum ConcurrencyModel {
    Single,
    Multi,
}

impl ConcurrencyModel {
    /// The limit a model alone stands for.
    pub(super) fn concurrency(self) -> i64 {
        match self {
            Self::Single => 1,
            Self::Multi => 0,
        }
    }

    /// Whether a limit is one of the model: one request at a time, or several.
    pub(super) fn allows(self, concurrency: i64) -> bool {
        (self == Self::Single) == (concurrency == 1)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum ServingState {
    Active,
    Reserve,
    Retired,
}

impl ServingState {
    /// Today's word for it.
    pub(super) fn routing_state(self) -> &'static str {
        match self {
            Self::Active => "active",
            Self::Reserve | Self::Retired => "reserve",
        }
    }

    /// The state to show for a routing state that is not the one written.
    pub(super) fn of(routing_state: &str) -> Option<Self> {
        match routing_state {
            "active" => Some(Self::Active),
            "reserve" => Some(Self::Reserve),
            _ => None,
        }
    }
}

impl Memo {
    /// The memo of a stored object. One that cannot be read says nothing.
    pub(super) fn of(object: &Value) -> Option<Self> {
        serde_json::from_str(object["metadata"]["annotations"][neap::WRITTEN_AS].as_str()?).ok()
    }

    /// The annotation's value; `None` when there is nothing to remember.
    pub(super) fn text(&self) -> Option<String> {
        (!is_default(self)).then(|| serde_json::to_string(self).expect("a memo serialises"))
    }
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}
