//! What whoever orders certificates tells whoever answers an authority's challenges (RFC 8555, RFC 8737): Secrets of a type of
//! their own in `knative-serving`, where no tenant writes.

use serde::{Deserialize, Serialize};

/// The type of the Secret of an order.
pub const ORDER_TYPE: &str = "neap.dev/acme-order";
/// The type of the Secret of an account.
pub const ACCOUNT_TYPE: &str = "neap.dev/acme-account";
/// Key of an order's Secret: the [`Answers`], JSON.
pub const ANSWERS: &str = "answers";
/// Where an authority asks for the answer to HTTP-01 (RFC 8555, 8.3).
pub const CHALLENGE_PATH: &str = "/.well-known/acme-challenge/";
/// The Service that paths of open challenges name as their backend. It need not exist: the gateway answers itself.
pub const SOLVER: &str = "neap-acme";

/// What is answered while an order is open.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answers {
    /// The namespace of the Certificate; hosts that another namespace serves are not answered for.
    pub namespace: String,
    /// To HTTP-01.
    #[serde(default)]
    pub http01: Vec<Http01Answer>,
    /// To TLS-ALPN-01.
    #[serde(default)]
    pub tls_alpn01: Vec<TlsAlpn01Answer>,
}

/// The answer to one HTTP-01 challenge.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Http01Answer {
    /// The host that is asked.
    pub host: String,
    /// What follows [`CHALLENGE_PATH`].
    pub token: String,
    /// The body.
    pub key_authorization: String,
}

/// The answer to one TLS-ALPN-01 challenge.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TlsAlpn01Answer {
    /// The host that is asked.
    pub host: String,
    /// The certificate to show, PEM.
    pub certificate: String,
    /// Its key, PEM.
    pub key: String,
}
