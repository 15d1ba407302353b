//! The Kubernetes HTTP contract for whatever kinds are registered, as a tower service; a listener is optional.
//!
//! A request is parsed (`request`), its caller identified and judged (`auth`), its kind found (`registry`), and a verb
//! (`verbs`) answers it. What a kind is comes from a CustomResourceDefinition (`kind`), for compiled-in kinds as for those
//! that users define while the server runs (`crd`). Rules are pure modules (`metadata`, `selector`, `schema`, `patch`,
//! `namespace`, `jsonpath`, `table`); everything about one object is decided between two reads of the store without an
//! await. Objects are stored as JSON that is served by splicing, never by parsing, where nothing has to be changed.
//!
//! This crate knows no concrete kind beyond the few that the contract itself speaks of (namespaces, definitions, the
//! subresources of pods and service accounts, roles), and nothing of Knative.

pub mod audit;
pub mod auth;
mod cel;
pub mod codec;
pub mod crd;
mod discovery;
mod documents;
mod gate;
mod history;
pub mod jsonpath;
pub mod kind;
mod limits;
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
mod strict;
pub mod table;
pub mod time;
mod verbs;

pub use codec::Body;
pub use kind::{
    Admit, Column, ColumnValue, Connect, ConnectRequest, Convert, Document, Kind, KindError, Origin, Read, ScalePaths,
    Semantics, Version,
};
pub use registry::{Kinds, Registry};
pub use serve::serve;
pub use server::{Ack, ApiServer, Caller, ClientService, Config, GIT_VERSION, Now};
pub use status::ApiError;
pub use storage::Managed;
