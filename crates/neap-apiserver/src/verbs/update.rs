//! Update: the whole object, or one of its subresources, replaced.

use super::write::{self, Meant, Ownership, Part};
use crate::auth;
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
    let meant = Meant::by(&object);
    let creates = x.kind().create_on_update && part == Part::Main;
    // Whoever means a version is not tried again, so what was sent is not needed twice.
    let once = meant == Meant::Version && !creates;
    let mut kept = Some(object);
    let mut give = move || if once { kept.take() } else { kept.clone() };
    let mut wish =
        |_: &mut Exchange, _: &_| give().ok_or_else(|| ApiError::internal("a conditional write was tried twice"));
    let written = match write::update(x, part, Ownership::Tracked, meant, &mut wish) {
        Err(ApiError::NotFound { .. }) if creates => {
            let object = wish(x, &serde_json::Value::Null)?;
            let told = metadata::text(&object, "name");
            if told != x.name() {
                let why = format!("the name of the object ({told}) does not match the name on the URL ({})", x.name());
                return Err(ApiError::bad_request(why));
            }
            auth::check(&x.server, &x.user, request::Verb::Create, &x.at)?;
            write::create(x, object, Ownership::Tracked)?
        }
        other => other?,
    };
    write::respond(x, written).await
}
