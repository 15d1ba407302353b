//! Update: the whole object, or one of its subresources, replaced.

use super::write::{self, Ownership, Part};
use crate::codec::{self, Body};
use crate::metadata;
use crate::request;
use crate::server::Exchange;
use crate::status::{ApiError, Result};
use bytes::Bytes;
use http::{Request, Response};

pub(crate) async fn answer(x: &mut Exchange, part: Part, sent: &Request<Bytes>) -> Result<Response<Body>> {
    request::check_write(&x.query, request::Write::Update)?;
    let served = x.served.clone();
    let shape = served.kind.shape(served.version());
    let mut object = codec::parse_object(sent.headers(), sent.body(), &shape, &mut x.faults)?;
    metadata::check_decoded(&mut object, &shape)?;
    if metadata::text(&object, "name").is_empty() {
        return Err(metadata::nameless(x.name()));
    }
    let object = super::to_working(x, object)?;
    let written = match write::update(x, part, Ownership::Tracked, |_, _| Ok(object.clone())) {
        Err(ApiError::NotFound { .. }) if x.kind().create_on_update && part == Part::Main => {
            write::create(x, object, Ownership::Tracked)?
        }
        other => other?,
    };
    write::respond(x, written).await
}
