//! The four old ways to describe a Service: `runLatest`, `release`, `pinned` and `manual` (facts I1 to I4).

use neap_api::keys::neap;
use serde_json::{Value, json};

use super::memo::{Form, Memo};
use super::{Fields, present, show_generation, take, take_generation, template, traffic};
use crate::admit::field_error::Errors;
use crate::names::is_dns1035_label as is_label;

const MANUAL: &str = "manual";
/// Stands for the newest ready revision in the list of a release.
const LATEST: &str = "@latest";
/// Tags of a release's targets, by the place in its list.
const TAGS: [&str; 2] = ["current", "candidate"];
/// Tag of the target that a release always has, without requests, to try the newest revision.
const LATEST_TAG: &str = "latest";
/// The largest share of a release's second revision: with all requests it would be the first.
const MOST_ROLLOUT: i64 = 99;

pub(super) fn to_stored(spec: &mut Fields, memo: &mut Memo, mode: &mut Option<&'static str>) -> Errors {
    memo.generation = take_generation(spec);
    let old = present(spec, &["runLatest", "release", "pinned", MANUAL]);
    let new = present(spec, &["template", "revisionTemplate", "build", "traffic"]);
    // Both a template and targets are one way: v1's.
    let ways: Vec<&str> = old.iter().chain(new.first()).copied().collect();
    if !old.is_empty() && ways.len() > 1 {
        return Errors::both(&ways);
    }
    for field in ["runLatest", "release", "pinned", MANUAL] {
        if spec.get(field).is_some_and(Value::is_null) {
            spec.remove(field);
        }
    }
    let Some(field) = old.first().copied() else {
        let errors = template::configuration_to_stored(spec, &mut memo.configuration);
        return errors.and(traffic::to_stored(spec, &mut memo.named));
    };
    let Some(Value::Object(mut way)) = take(spec, field) else {
        return Errors::of("must be an object", &[field]);
    };
    let mut errors = Errors::none();
    if field == MANUAL {
        *mode = Some(neap::SERVICE_MODE_MANUAL);
    } else {
        let targets = match field {
            "pinned" => pinned(&mut way),
            "release" => release(&mut way, memo),
            _ => Ok(json!([{"latestRevision": true, "percent": 100}])),
        };
        memo.form = Form::ALL.into_iter().find(|form| form.field() == field);
        errors.add(configuration(&mut way, spec, memo).via_field(field));
        match targets {
            Ok(targets) => drop(spec.insert("traffic".into(), targets)),
            Err(why) => errors.add(why.via_field(field)),
        }
    }
    // What nobody knows is left for the schema to name.
    if !way.is_empty() {
        spec.insert(field.to_owned(), Value::Object(way));
    }
    errors
}

/// Moves the template of the Configuration inside one of the ways up to where v1 has it.
fn configuration(way: &mut Fields, spec: &mut Fields, memo: &mut Memo) -> Errors {
    let mut inner = match take(way, "configuration") {
        None => return Errors::none(),
        Some(Value::Object(inner)) => inner,
        Some(_) => return Errors::of("must be an object", &["configuration"]),
    };
    let errors = template::configuration_to_stored(&mut inner, &mut memo.configuration).via_field("configuration");
    if let Some(template) = inner.remove("template") {
        spec.insert("template".into(), template);
    }
    if !inner.is_empty() {
        way.insert("configuration".into(), Value::Object(inner));
    }
    errors
}

fn pinned(way: &mut Fields) -> Result<Value, Errors> {
    match take(way, "revisionName") {
        Some(Value::String(name)) if is_label(&name) => {
            Ok(json!([{"revisionName": name, "latestRevision": false, "percent": 100}]))
        }
        Some(Value::String(name)) if !name.is_empty() => Err(Errors::invalid_key(&name, "revisionName")),
        Some(Value::String(_)) | None => Err(Errors::missing(&["revisionName"])),
        Some(other) => Err(Errors::invalid(other, "revisionName")),
    }
}

fn release(way: &mut Fields, memo: &mut Memo) -> Result<Value, Errors> {
    let mut errors = Errors::none();
    let percent = match take(way, "rolloutPercent") {
        None => 0,
        Some(written) => {
            memo.zero_percent = written == 0;
            let percent = written.as_i64().filter(|p| (0..=MOST_ROLLOUT).contains(p));
            if percent.is_none() {
                errors.add(Errors::out_of_bounds(written, 0, MOST_ROLLOUT, "rolloutPercent"));
            }
            percent.unwrap_or_default()
        }
    };
    let revisions = match take(way, "revisions") {
        Some(Value::Array(revisions)) => revisions,
        None => return Err(errors.and(Errors::missing(&["revisions"]))),
        Some(other) => return Err(errors.and(Errors::invalid(other, "revisions"))),
    };
    if !(1..=TAGS.len()).contains(&revisions.len()) {
        return Err(errors.and(Errors::out_of_bounds(revisions.len(), 1, TAGS.len(), "revisions")));
    }
    // A share needs somebody to give it to.
    if revisions.len() == 1 && percent != 0 {
        errors.add(Errors::invalid(percent, "rolloutPercent"));
    }
    for (i, revision) in revisions.iter().enumerate() {
        match revision.as_str() {
            Some(name) if name == LATEST || is_label(name) => {}
            Some(name) => errors.add(Errors::invalid_key(name, &format!("revisions[{i}]"))),
            None => errors.add(Errors::invalid(revision, &format!("revisions[{i}]"))),
        }
    }
    if !errors.is_ok() {
        return Err(errors);
    }
    Ok(targets(&revisions.iter().filter_map(Value::as_str).collect::<Vec<_>>(), percent))
}

/// The targets of a release.
fn targets(revisions: &[&str], percent: i64) -> Value {
    let shares = if revisions.len() == 1 { [100, 0] } else { [100 - percent, percent] };
    let mut targets: Vec<Value> = Vec::new();
    for ((revision, tag), share) in revisions.iter().zip(TAGS).zip(shares) {
        targets.push(match *revision {
            LATEST => json!({"tag": tag, "latestRevision": true, "percent": share}),
            name => json!({"tag": tag, "revisionName": name, "latestRevision": false, "percent": share}),
        });
    }
    targets.push(json!({"tag": LATEST_TAG, "latestRevision": true, "percent": 0}));
    Value::Array(targets)
}

/// Shows a Service in the way it was written, where its targets still are what that way can say.
pub(super) fn to_old(spec: &mut Fields, memo: &Memo, generation: Option<i64>) {
    let shown = memo.form.and_then(|form| Some((form, way(form, spec.get("traffic")?, memo)?)));
    let Some((form, mut way)) = shown else {
        template::configuration_to_old(spec, &memo.configuration, None);
        traffic::to_old(spec, &memo.named);
        show_generation(spec, memo.generation, generation);
        return;
    };
    spec.remove("traffic");
    let mut inner = Fields::new();
    inner.extend(spec.remove("template").map(|template| ("template".to_owned(), template)));
    template::configuration_to_old(&mut inner, &memo.configuration, None);
    if !inner.is_empty() {
        way.insert("configuration".into(), Value::Object(inner));
    }
    spec.insert(form.field().into(), Value::Object(way));
    show_generation(spec, memo.generation, generation);
}

/// What stands beside the Configuration in one of the ways; `None` when it cannot say these targets.
fn way(form: Form, traffic: &Value, memo: &Memo) -> Option<Fields> {
    let have: Vec<Target> = traffic.as_array()?.iter().map(Target::of).collect::<Option<_>>()?;
    let mut way = Fields::new();
    match (form, have.as_slice()) {
        (Form::RunLatest, [one]) if one.revision.is_empty() && one.tag.is_empty() && one.percent == 100 => {}
        (Form::Pinned, [one]) if is_label(one.revision) && one.tag.is_empty() && one.percent == 100 => {
            way.insert("revisionName".into(), one.revision.into());
        }
        (Form::Release, [revisions @ .., _]) if (1..=TAGS.len()).contains(&revisions.len()) => {
            let names: Vec<&str> =
                revisions.iter().map(|t| if t.revision.is_empty() { LATEST } else { t.revision }).collect();
            let percent = revisions.get(1).map_or(0, |candidate| candidate.percent);
            let meant = targets(&names, percent);
            let meant: Vec<Target> = meant.as_array()?.iter().map(Target::of).collect::<Option<_>>()?;
            if meant != have || !(0..=MOST_ROLLOUT).contains(&percent) {
                return None;
            }
            way.insert("revisions".into(), json!(names));
            if percent != 0 || memo.zero_percent {
                way.insert("rolloutPercent".into(), percent.into());
            }
        }
        _ => return None,
    }
    Some(way)
}

/// A target as far as the old ways know one.
#[derive(Debug, PartialEq)]
struct Target<'a> {
    tag: &'a str,
    /// Empty: the newest ready one.
    revision: &'a str,
    percent: i64,
}

impl<'a> Target<'a> {
    /// `None` for what no old way can say.
    fn of(target: &'a Value) -> Option<Self> {
        let fields = target.as_object()?;
        let text = |key: &str| fields.get(key).and_then(Value::as_str).unwrap_or_default();
        let known = ["tag", "revisionName", "latestRevision", "percent"];
        let latest = fields.get("latestRevision").and_then(Value::as_bool);
        let one = Self {
            tag: text("tag"),
            revision: text("revisionName"),
            percent: fields.get("percent").and_then(Value::as_i64).unwrap_or_default(),
        };
        let plain = fields.keys().all(|key| known.contains(&key.as_str()));
        (plain && latest.is_none_or(|latest| latest == one.revision.is_empty())).then_some(one)
    }
}
