//! `/neap/images`: every image of this machine, also those that were loaded or pulled under names of other registries,
//! which the distribution protocol cannot speak of.

use std::collections::BTreeSet;

use neap_runtime::image::{ImageInfo, Images, Origin, StoreError};
use serde_json::{Value, json};

use super::Query;
use super::reply::{self, Code, Refusal, Reply};

/// `{"images": [{"name", "tag", "digest", "origin", "size", "lastUsed"}]}`; sizes in bytes, `tag` null where the image
/// is known by its digest only.
pub(super) async fn list(images: &Images) -> Result<Reply, Refusal> {
    let list = images.list().await.map_err(|error| refuse(&error))?;
    Ok(reply::json(&json!({ "images": list.iter().map(entry).collect::<Vec<_>>() })))
}

/// Takes the name `?name=` away. What runs from it goes on running, and its content stays while it does.
pub(super) async fn remove(images: &Images, query: &Query) -> Result<Reply, Refusal> {
    let name =
        query.get("name").ok_or_else(|| Refusal::new(Code::NameInvalid, "?name= must say which image".to_owned()))?;
    images.remove(name, &BTreeSet::new()).await.map_err(|error| refuse(&error))?;
    Ok(reply::json(&json!({ "removed": name })))
}

fn entry(image: &ImageInfo) -> Value {
    json!({
        "name": image.repository,
        "tag": image.tag,
        "digest": image.digest,
        "origin": match image.origin {
            Origin::Given => "given",
            Origin::Pulled => "pulled",
        },
        "size": image.size,
        "lastUsed": image.last_used,
    })
}

fn refuse(error: &StoreError) -> Refusal {
    let code = match error {
        StoreError::NoSuchImage { .. } => Code::NameUnknown,
        StoreError::Name { .. } => Code::NameInvalid,
        _ => Code::Unknown,
    };
    Refusal::new(code, crate::report::chain(error))
}
