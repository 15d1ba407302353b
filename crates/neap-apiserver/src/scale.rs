//! The `scale` subresource: three numbers of an object as an autoscaling/v1 Scale, read and written.

use crate::codec::{self, Body};
use crate::kind::{ScalePaths, Semantics};
use crate::metadata;
use crate::patch::{self, Operation};
use crate::request::{self, Verb, Write};
use crate::server::Exchange;
use crate::status::{ApiError, Result, invalid};
use crate::verbs;
use crate::verbs::patch::Patch;
use crate::verbs::write::{self, Meant, Ownership, Part};
use bytes::Bytes;
use http::{Request, Response};
use serde_json::{Map, Value, json};

const API_VERSION: &str = "autoscaling/v1";

pub(crate) async fn answer(x: &mut Exchange, verb: Verb, sent: &Request<Bytes>) -> Result<Response<Body>> {
    let paths = x.served.version().scale.clone().ok_or(ApiError::NoSuchPath)?;
    let written = match verb {
        Verb::Get => {
            let entry = verbs::get::find(x)?;
            let object = verbs::get::decode_served(x, &entry)?;
            if x.kind().semantics == Semantics::Custom && at(&object, &paths.spec_replicas).is_none() {
                let path = paths.spec_replicas.join(".");
                return Err(ApiError::internal(format!("the spec replicas field \".{path}\" does not exist")));
            }
            return Ok(codec::respond(200, &scale(&object, &paths), x.wanted));
        }
        Verb::Update => {
            request::check_write(&x.query, Write::Update)?;
            let wanted = codec::parse(sent.headers(), sent.body())?;
            if !wanted.is_object() {
                return Err(ApiError::bad_request("the body of the request is no Scale"));
            }
            match metadata::text(&wanted, "name") {
                "" => return Err(metadata::nameless(x.name())),
                told if told != x.name() => {
                    let name = x.name();
                    let why = format!("the name of the object ({told}) does not match the name on the URL ({name})");
                    return Err(ApiError::bad_request(why));
                }
                _ => {}
            }
            update(x, &paths, Meant::by(&wanted), |_, _| Ok(wanted.clone()))?
        }
        Verb::Patch => match verbs::patch::parse(x, sent)? {
            Patch::Apply(applied) => apply(x, &paths, &applied)?,
            patch => {
                request::check_write(&x.query, Write::Patch)?;
                let wish = |x: &Exchange, present: &Value| {
                    let mut wanted = present.clone();
                    match &patch {
                        // Without lists, there is nothing strategic about it.
                        Patch::Strategic(wish) => patch::merge_patch(&mut wanted, wish),
                        patch => verbs::patch::change(x, &mut wanted, patch)?,
                    }
                    Ok(wanted)
                };
                update(x, &paths, patch.meant(), wish).map_err(|error| verbs::patch::unfit(sent.body(), error))?
            }
        },
        _ => return Err(ApiError::MethodNotAllowed),
    };
    write::settle(x, written.committed, x.query.is_dry_run()).await?;
    let object = verbs::to_served(x, written.object)?;
    Ok(codec::respond(200, &scale(&object, &paths), x.wanted))
}

/// `wish` is given the present Scale and returns the wanted one.
fn update(
    x: &mut Exchange,
    paths: &ScalePaths,
    meant: Meant,
    mut wish: impl FnMut(&Exchange, &Value) -> Result<Value>,
) -> Result<write::Written> {
    write::update(x, Part::Scale, Ownership::Tracked, meant, |x, old| {
        let mut object = verbs::to_served(x, old.clone())?;
        let wanted = wish(x, &scale(&object, paths))?;
        let replicas = check(x, &wanted, paths)?;
        set(&mut object, &paths.spec_replicas, json!(replicas));
        // The caller's resource version guards the object itself.
        let meta = metadata::of_mut(&mut object);
        match metadata::text(&wanted, "resourceVersion") {
            "" => {}
            version => {
                meta.insert("resourceVersion".into(), json!(version));
            }
        }
        match metadata::text(&wanted, "uid") {
            "" => {}
            uid => {
                meta.insert("uid".into(), json!(uid));
            }
        }
        verbs::to_working(x, object)
    })
}

/// A server-side apply of a Scale owns the number in the object itself, as the subresource.
fn apply(x: &mut Exchange, paths: &ScalePaths, wish: &Value) -> Result<write::Written> {
    request::check_write(&x.query, Write::Apply)?;
    let replicas = check(x, wish, paths)?;
    let version = x.served.version().api_version.clone();
    let mut applied = json!({"apiVersion": version, "kind": x.kind().kind, "metadata": {"name": x.name()}});
    set(&mut applied, &paths.spec_replicas, json!(replicas));
    let applied = verbs::to_working(x, applied)?;
    let schema = x.working.version().schema.clone();
    let by = write::manager(x, Operation::Apply, Part::Scale.subresource());
    let force = x.query.force.unwrap_or(false);
    write::update(x, Part::Scale, Ownership::Applied, Meant::Whatever, |_, old| {
        patch::apply(Some(old), &applied, &by, &schema, force).map_err(|e| verbs::patch::conflict(e, false))
    })
}

fn check(x: &Exchange, wanted: &Value, paths: &ScalePaths) -> Result<i64> {
    let (kind, version) = (wanted.get("kind"), wanted.get("apiVersion"));
    if kind.is_some_and(|k| k != "Scale") || version.is_some_and(|v| v != API_VERSION) {
        return Err(ApiError::bad_request(format!(
            "the object is no Scale of {API_VERSION}, but {}, Kind={}",
            version.and_then(Value::as_str).unwrap_or(""),
            kind.and_then(Value::as_str).unwrap_or("")
        )));
    }
    let replicas = wanted.pointer("/spec/replicas").unwrap_or(&Value::Null);
    match replicas {
        Value::Null => Ok(0),
        _ => match replicas.as_i64() {
            Some(n) if (0..=i64::from(i32::MAX)).contains(&n) => Ok(n),
            Some(n) if n < 0 => {
                // Of a custom resource it is told as a fault of the resource.
                let (group, kind, cause) = match x.kind().semantics {
                    Semantics::Native => {
                        let cause = invalid("spec.replicas", replicas, "must be greater than or equal to 0");
                        ("autoscaling".to_owned(), "Scale".to_owned(), cause)
                    }
                    Semantics::Custom => {
                        let field = format!(".{}", paths.spec_replicas.join("."));
                        let cause = invalid(&field, replicas, "should be a non-negative integer");
                        (x.kind().group.clone(), x.kind().kind.clone(), cause)
                    }
                };
                Err(ApiError::Invalid { group, kind, name: x.name().to_owned(), causes: vec![cause] })
            }
            _ => Err(ApiError::Undecodable {
                told: "Scale".into(),
                version: "v1".into(),
                kind: "Scale".into(),
                why: format!("json: cannot unmarshal {replicas} into field Scale.spec.replicas of type integer"),
            }),
        },
    }
}

fn scale(object: &Value, paths: &ScalePaths) -> Value {
    let mut meta = Map::new();
    for key in ["name", "namespace", "uid", "resourceVersion", "creationTimestamp"] {
        if let Some(value) = object.pointer(&format!("/metadata/{key}")) {
            meta.insert(key.into(), value.clone());
        }
    }
    let mut spec = json!({});
    if let Some(n) = at(object, &paths.spec_replicas).and_then(Value::as_i64).filter(|n| *n != 0) {
        spec["replicas"] = json!(n);
    }
    let mut status = json!({"replicas": at(object, &paths.status_replicas).and_then(Value::as_i64).unwrap_or(0)});
    if let Some(selector) = paths.selector.as_ref().and_then(|p| at(object, p)).and_then(selector_text) {
        status["selector"] = json!(selector);
    }
    json!({"apiVersion": API_VERSION, "kind": "Scale", "metadata": meta, "spec": spec, "status": status})
}

/// Custom resources keep the selector as text, Kubernetes' own kinds as a LabelSelector.
fn selector_text(value: &Value) -> Option<String> {
    if let Some(text) = value.as_str() {
        return Some(text.to_owned());
    }
    let mut terms = Vec::new();
    for (key, v) in value.get("matchLabels").and_then(Value::as_object).into_iter().flatten() {
        terms.push(format!("{key}={}", v.as_str().unwrap_or("")));
    }
    for e in value.get("matchExpressions").and_then(Value::as_array).into_iter().flatten() {
        let key = e.get("key").and_then(Value::as_str).unwrap_or("");
        let values: Vec<&str> =
            e.get("values").and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str).collect();
        terms.push(match e.get("operator").and_then(Value::as_str)? {
            "In" => format!("{key} in ({})", values.join(",")),
            "NotIn" => format!("{key} notin ({})", values.join(",")),
            "Exists" => key.to_owned(),
            _ => format!("!{key}"),
        });
    }
    Some(terms.join(","))
}

fn at<'a>(object: &'a Value, path: &[String]) -> Option<&'a Value> {
    path.iter().try_fold(object, |value, field| value.get(field))
}

fn set(object: &mut Value, path: &[String], value: Value) {
    let mut here = object;
    for field in path {
        if !here.is_object() {
            *here = json!({});
        }
        here = here.as_object_mut().expect("made an object above").entry(field.clone()).or_insert(Value::Null);
    }
    *here = value;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_and_writes_by_path() {
        let path = |p: &str| p.split('.').map(str::to_owned).collect::<Vec<_>>();
        let paths = ScalePaths {
            spec_replicas: path("spec.size"),
            status_replicas: path("status.ready"),
            selector: Some(path("spec.selector")),
        };
        let mut object = json!({"metadata": {"name": "a", "labels": {}, "uid": "u"}, "spec": {"selector":
            {"matchLabels": {"a": "b"}, "matchExpressions": [{"key": "k", "operator": "In", "values": ["x", "y"]}]}}});
        set(&mut object, &paths.spec_replicas, json!(3));
        assert_eq!(
            scale(&object, &paths),
            json!({"apiVersion": "autoscaling/v1", "kind": "Scale", "metadata": {"name": "a", "uid": "u"},
                "spec": {"replicas": 3}, "status": {"replicas": 0, "selector": "a=b,k in (x,y)"}})
        );
    }
}
