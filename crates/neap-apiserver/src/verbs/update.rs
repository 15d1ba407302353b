//! Update: the whole object, or one of its subresources, replaced.

use super::write::{self, Ownership, Part};
use crate::codec::{self, Body};
use crate::metadata;
use crate::server::Exchange;
use crate::status::{ApiError, Result};
use bytes::Bytes;
use http::{Request, Response};

pub(crate) async fn answer(x: &mut Exchange, part: Part, request: &Request<Bytes>) -> Result<Response<Body>> {
    let mut object = codec::parse(request.headers(), request.body())?;
    metadata::check_decoded(&mut object, &x.served.kind.shape(x.served.version()))?;
    let object = super::to_working(x, object)?;
    let written = match write::update(x, part, Ownership::Tracked, |_, _| Ok(object.clone())) {
        Err(ApiError::NotFound { .. }) if x.kind().create_on_update && part == Part::Main => {
            write::create(x, object, Ownership::Tracked)?
        }
        other => other?,
    };
    write::respond(x, written).await
}
