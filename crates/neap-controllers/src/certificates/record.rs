//! An order, kept where a restart finds it again: in a Secret of `knative-serving` that the gateways read the answers from.

use std::collections::BTreeMap;

use jiff::Timestamp;
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::{Patch, PatchParams};
use kube::{Api, Client};
use neap_api::acme::{ANSWERS, Answers, ORDER_TYPE};
use neap_api::keys::{config, neap, networking};
use neap_logic::certificates::Fault;
use neap_logic::plan::certificate::order_name;
use serde::{Deserialize, Serialize};

use crate::index::Key;

/// Keys of the Secret, beside the answers.
const RECORD: &str = "order";
const PRIVATE_KEY: &str = "key";
const MANAGER: &str = "neap-certificates";

/// How far an order is.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct Record {
    pub(super) directory: String,
    pub(super) names: Vec<String>,
    /// A checksum of the settings it was asked with.
    pub(super) settings: String,
    /// The order at the authority.
    pub(super) url: Option<String>,
    /// Since when the answers are written.
    pub(super) presented: Option<Timestamp>,
    /// Attempts in a row that came to nothing, and those of them that the authority refused.
    pub(super) failures: u32,
    pub(super) refusals: u32,
    /// What went wrong last, and until when nothing is tried.
    pub(super) fault: Option<Fault>,
    pub(super) again_at: Option<Timestamp>,
    /// The key that the certificate was asked for with; PEM.
    #[serde(skip)]
    pub(super) key: Option<String>,
    #[serde(skip)]
    pub(super) answers: Answers,
}

impl Record {
    /// What is kept for a Certificate; nothing when it is about something else.
    pub(super) async fn load(client: &Client, uid: &str) -> kube::Result<Option<Self>> {
        let Some(secret) = api(client).get_opt(&order_name(uid)).await? else { return Ok(None) };
        Ok(Self::of_secret(&secret))
    }

    fn of_secret(secret: &Secret) -> Option<Self> {
        let data = secret.data.as_ref()?;
        let mut record: Self = serde_json::from_slice(&data.get(RECORD)?.0).ok()?;
        record.key = data.get(PRIVATE_KEY).and_then(|key| String::from_utf8(key.0.clone()).ok());
        record.answers = data.get(ANSWERS).and_then(|all| serde_json::from_slice(&all.0).ok()).unwrap_or_default();
        Some(record)
    }

    /// Gives the order up, and remembers only what went wrong.
    pub(super) fn give_up(&mut self) {
        (self.url, self.presented, self.key, self.answers) = (None, None, None, Answers::default());
    }

    pub(super) async fn save(&self, client: &Client, certificate: &Key, uid: &str) -> kube::Result<()> {
        let json = |bytes: serde_json::Result<Vec<u8>>| ByteString(bytes.expect("plain values serialise"));
        let mut data = BTreeMap::from([
            (RECORD.to_owned(), json(serde_json::to_vec(self))),
            (ANSWERS.to_owned(), json(serde_json::to_vec(&self.answers))),
        ]);
        if let Some(key) = &self.key {
            data.insert(PRIVATE_KEY.into(), ByteString(key.clone().into_bytes()));
        }
        let name = order_name(uid);
        let secret = Secret {
            metadata: ObjectMeta {
                name: Some(name.clone()),
                namespace: Some(config::NAMESPACE.into()),
                labels: Some(BTreeMap::from([(networking::CERTIFICATE_UID.to_owned(), uid.to_owned())])),
                annotations: Some(BTreeMap::from([(neap::CERTIFICATE.to_owned(), certificate.to_string())])),
                ..ObjectMeta::default()
            },
            data: Some(data),
            type_: Some(ORDER_TYPE.into()),
            ..Secret::default()
        };
        api(client).patch(&name, &PatchParams::apply(MANAGER).force(), &Patch::Apply(&secret)).await.map(drop)
    }
}

/// Whose order a Secret is.
pub(crate) fn certificate_of(meta: &ObjectMeta) -> Option<Key> {
    let (namespace, name) = meta.annotations.as_ref()?.get(neap::CERTIFICATE)?.split_once('/')?;
    Some(Key::new(namespace, name))
}

fn api(client: &Client) -> Api<Secret> {
    Api::namespaced(client.clone(), config::NAMESPACE)
}
