//! Create: an object under its own or a generated name; answered kinds; and the binding of a pod to a node.

use super::write::{self, Ownership, Part};
use crate::codec::{self, Body};
use crate::metadata;
use crate::request::{self, Verb};
use crate::server::Exchange;
use crate::status::{ApiError, ResourceId, Result};
use bytes::Bytes;
use http::{Request, Response};
use serde_json::json;

pub(crate) async fn answer(x: &mut Exchange, sent: &Request<Bytes>) -> Result<Response<Body>> {
    request::check_write(&x.query, request::Write::Create)?;
    let served = x.served.clone();
    let shape = served.kind.shape(served.version());
    let mut object = codec::parse_object(sent.headers(), sent.body(), &shape, &mut x.faults)?;
    metadata::check_decoded(&mut object, &shape)?;
    let object = super::to_working(x, object)?;
    let written = write::create(x, object, Ownership::Tracked)?;
    write::respond(x, written).await
}

/// Kinds that are answered and never stored.
pub(crate) fn answered(x: &mut Exchange, request: &Request<Bytes>) -> Result<Response<Body>> {
    let served = x.served.clone();
    let shape = served.kind.shape(served.version());
    let mut object = codec::parse_object(request.headers(), request.body(), &shape, &mut x.faults)?;
    metadata::check_decoded(&mut object, &shape)?;
    if let Some(namespace) = x.namespace() {
        metadata::of_mut(&mut object).insert("namespace".into(), json!(namespace));
    }
    let answer = x.kind().answer.clone().ok_or(ApiError::MethodNotAllowed)?;
    let object = answer(object, &x.user)?;
    super::value_response(x, 201, object)
}

/// `POST …/pods/NAME/binding`: the pod goes to the node `target.name`, once.
pub(crate) async fn binding(x: &mut Exchange, verb: Verb, request: &Request<Bytes>) -> Result<Response<Body>> {
    if verb != Verb::Create {
        return Err(ApiError::MethodNotAllowed);
    }
    let binding = codec::parse(request.headers(), request.body())?;
    let node = binding.pointer("/target/name").and_then(|n| n.as_str()).unwrap_or("").to_owned();
    if node.is_empty() {
        return Err(ApiError::Unnamed("target.name: Required value".into()));
    }
    let written = write::update(x, Part::Main, Ownership::Tracked, write::Meant::Whatever, |x, old| {
        let bound = old.pointer("/spec/nodeName").and_then(|n| n.as_str()).unwrap_or("");
        if !bound.is_empty() {
            return Err(ApiError::Conflict {
                resource: ResourceId::new("", "pods/binding"),
                name: x.name().to_owned(),
                why: format!("pod {} is already assigned to node {bound:?}", x.name()),
            });
        }
        let mut new = old.clone();
        new["spec"]["nodeName"] = json!(node);
        Ok(new)
    })?;
    x.server.acknowledge(x.ack, written.committed).await?;
    let success = json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "code": 201});
    Ok(codec::respond(201, &success, x.wanted))
}
