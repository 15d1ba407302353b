//! The Kubernetes HTTP contract for whatever kinds are registered, as a tower service; a listener is optional.
//!
//! This crate knows no concrete kind beyond the few that the contract itself speaks of (namespaces, definitions, the
//! subresources of pods and service accounts, roles), and nothing of Knative.

pub mod auth;
pub mod codec;
pub mod crd;
mod discovery;
mod documents;
pub mod jsonpath;
pub mod kind;
pub mod metadata;
mod namespace;
pub mod openapi;
pub mod patch;
pub mod pki;
mod protobuf;
mod registry;
pub mod request;
mod scale;
pub mod schema;
pub mod selector;
mod serve;
mod server;
pub mod status;
mod storage;
pub mod table;
pub mod time;
mod verbs;

pub use codec::Body;
pub use kind::{
    Admit, Column, ColumnValue, Connect, ConnectRequest, Convert, Document, Kind, KindError, Origin, ScalePaths,
    Semantics, Version,
};
pub use registry::{Kinds, Registry};
pub use serve::serve;
pub use server::{Ack, ApiServer, Caller, ClientService, Config, GIT_VERSION, Now};
pub use status::ApiError;
