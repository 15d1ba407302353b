//! The Ingress of a Route: one rule per host, with the tags' headers where they are switched on (F1).

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use neap_api::keys::{neap, networking, serving as keys};
use neap_api::networking::{
    HeaderMatch, Http01Challenge, HttpPath, HttpRule, Ingress, IngressRule, IngressSpec, IngressSplit, IngressTls,
};
use neap_api::serving::Route;

use super::Observed;
use crate::config::network::HttpProtocol;
use crate::config::{Flag, Settings};
use crate::names;
use crate::names::hosts::{self, HostError};
use crate::plan::ensure::controller_ref;
use crate::plan::meta;
use crate::routing::extras::{self, PathExtra, Rule, RuleTarget};
use crate::traffic::{Rollout, Target, Traffic, Visibility, route_name};

/// Spellings of the headers as API objects carry them.
const REVISION_HEADER: &str = "Knative-Serving-Revision";
const NAMESPACE_HEADER: &str = "Knative-Serving-Namespace";
const TAG_HEADER: &str = "Knative-Serving-Tag";
const DEFAULT_ROUTE_HEADER: &str = "Knative-Serving-Default-Route";

/// The Ingress as it should be.
pub(super) fn make(
    o: &Observed,
    traffic: &Traffic,
    visibilities: &BTreeMap<String, Visibility>,
    rollout: &Rollout,
    tls: Vec<IngressTls>,
    challenges: &[Http01Challenge],
) -> Result<Ingress, HostError> {
    let route = o.route.as_ref();
    let settings = &o.context.settings;
    let empty = BTreeMap::new();
    let name = route_name(&route.metadata, &empty);
    let (wanted, mut extras) = (by_match(route, settings), Vec::new());
    let mut rules = Vec::new();
    let mut tag_hosts: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    for (tag, targets) in &traffic.groups {
        if targets.is_empty() {
            continue;
        }
        let local = hosts::host(&name, tag, true, settings)?;
        let mut sides = vec![(hosts::local_names(&local, settings), local, "ClusterLocal")];
        if visibilities.get(tag) != Some(&Visibility::ClusterLocal) {
            let external = hosts::host(&name, tag, false, settings)?;
            sides.push((vec![external.clone()], external, "ExternalIP"));
        }
        for (hosts, primary, visibility) in sides {
            if !tag.is_empty() {
                tag_hosts.entry(tag).or_default().push(primary);
            }
            let mut paths = paths(name.namespace, tag, targets, traffic, rollout, settings);
            if visibility == "ExternalIP" {
                paths.splice(0..0, challenge_paths(challenges, &hosts));
            }
            if tag.is_empty() {
                let known = wanted.iter().filter_map(|rule| Some((rule, traffic.groups.get_key_value(tag_of(rule))?)));
                for (rule, (tag, targets)) in known {
                    extras.push(PathExtra { rule: rules.len(), path: paths.len(), more: rule.more.clone() });
                    paths.push(by_rule(rule, name.namespace, tag, targets, rollout, settings));
                }
            }
            rules.push(IngressRule { hosts, visibility: visibility.into(), http: Some(HttpRule { paths }) });
        }
    }
    Ok(Ingress {
        metadata: metadata(route, rollout, &tag_hosts, &extras, settings),
        spec: IngressSpec { http_option: http_option(route, !tls.is_empty(), settings).into(), tls, rules },
        status: None,
    })
}

fn metadata(
    route: &Route,
    rollout: &Rollout,
    tag_hosts: &BTreeMap<&str, Vec<String>>,
    extras: &[PathExtra],
    settings: &Settings,
) -> ObjectMeta {
    let own = &route.metadata;
    let mut labels = meta::labels(own);
    labels.insert(keys::ROUTE.into(), meta::name(own).into());
    labels.insert(keys::ROUTE_NAMESPACE.into(), meta::namespace(own).into());
    let mut annotations =
        meta::annotations(own, &[networking::INGRESS_CLASS, networking::INGRESS_CLASS_ALT, neap::ROUTES, neap::PATHS]);
    annotations.insert(networking::INGRESS_CLASS.into(), class(own, settings).to_owned());
    if !extras.is_empty() {
        annotations.insert(neap::PATHS.into(), extras::write_paths(extras));
    }
    annotations.insert(networking::ROLLOUT.into(), json(rollout));
    if !tag_hosts.is_empty() {
        annotations.insert(networking::TAG_TO_HOST.into(), json(tag_hosts));
    }
    ObjectMeta {
        name: Some(names::ingress(meta::name(own))),
        namespace: own.namespace.clone(),
        labels: Some(labels),
        annotations: Some(annotations),
        owner_references: Some(vec![controller_ref(route)]),
        ..ObjectMeta::default()
    }
}

/// The kind of gateway that is to serve it.
fn class<'a>(own: &'a ObjectMeta, settings: &'a Settings) -> &'a str {
    meta::annotation_of(own, &[networking::INGRESS_CLASS, networking::INGRESS_CLASS_ALT])
        .filter(|class| !class.is_empty())
        .unwrap_or(&settings.network.ingress_class)
}

/// The entries of `neap.dev/routes`. Another gateway could not tell them apart; admission has refused what cannot be read.
fn by_match(route: &Route, settings: &Settings) -> Vec<Rule> {
    let own = &route.metadata;
    let list = meta::annotation(own, neap::ROUTES).filter(|_| class(own, settings) == networking::NEAP_INGRESS_CLASS);
    list.and_then(|list| extras::rules(list, false).ok()).unwrap_or_default()
}

fn tag_of(rule: &Rule) -> &str {
    match &rule.target {
        RuleTarget::Tag(tag) => tag,
        RuleTarget::To(_) => "",
    }
}

/// The path of an entry: its requests are those of a tag, as if they carried its header.
fn by_rule(
    rule: &Rule,
    namespace: &str,
    tag: &str,
    targets: &[Target],
    rollout: &Rollout,
    settings: &Settings,
) -> HttpPath {
    let mut path =
        HttpPath { path: rule.path.clone(), splits: splits(namespace, tag, targets, rollout), ..HttpPath::default() };
    if settings.features.tag_header_based_routing == Flag::Enabled {
        path.append_headers.insert(TAG_HEADER.into(), tag.to_owned());
    }
    path
}

/// Redirecting makes sense only where there is something to redirect to.
fn http_option(route: &Route, has_tls: bool, settings: &Settings) -> &'static str {
    let own = meta::annotation_of(&route.metadata, &[networking::HTTP_PROTOCOL, networking::HTTP_OPTION]);
    let redirected = match own.map(str::to_ascii_lowercase).as_deref() {
        Some("redirected") => true,
        Some(_) => false,
        None => settings.network.http_protocol == HttpProtocol::Redirected,
    };
    if redirected && has_tls { "Redirected" } else { "Enabled" }
}

fn paths(
    namespace: &str,
    tag: &str,
    targets: &[Target],
    traffic: &Traffic,
    rollout: &Rollout,
    settings: &Settings,
) -> Vec<HttpPath> {
    let mut main = HttpPath { splits: splits(namespace, tag, targets, rollout), ..HttpPath::default() };
    if settings.features.tag_header_based_routing != Flag::Enabled {
        return vec![main];
    }
    if !tag.is_empty() {
        // A request by the tag's own host says the same as one that carries the header.
        main.append_headers.insert(TAG_HEADER.into(), tag.to_owned());
        return vec![main];
    }
    main.append_headers.insert(DEFAULT_ROUTE_HEADER.into(), "true".into());
    let tagged = traffic.groups.iter().filter(|(tag, _)| !tag.is_empty()).map(|(tag, targets)| HttpPath {
        headers: BTreeMap::from([(TAG_HEADER.to_owned(), HeaderMatch { exact: tag.clone() })]),
        splits: splits(namespace, tag, targets, rollout),
        ..HttpPath::default()
    });
    tagged.chain([main]).collect()
}

/// The paths that an authority asks for while it wants control over these hosts shown (F1.11): first in their rule.
pub(in crate::plan) fn challenge_paths(challenges: &[Http01Challenge], hosts: &[String]) -> Vec<HttpPath> {
    let of = |challenge: &Http01Challenge| {
        let (_, rest) = challenge.url.split_once("://")?;
        let (host, path) = rest.split_at(rest.find('/')?);
        hosts.iter().any(|wanted| wanted == host).then(|| HttpPath {
            path: path.to_owned(),
            splits: vec![IngressSplit {
                service_namespace: challenge.service_namespace.clone(),
                service_name: challenge.service_name.clone(),
                service_port: challenge.service_port.clone(),
                percent: 100,
                append_headers: BTreeMap::new(),
            }],
            ..HttpPath::default()
        })
    };
    challenges.iter().filter_map(of).collect()
}

fn splits(namespace: &str, tag: &str, targets: &[Target], rollout: &Rollout) -> Vec<IngressSplit> {
    let split = |target: &Target, revision: &str, percent: i64| IngressSplit {
        service_namespace: namespace.to_owned(),
        service_name: revision.to_owned(),
        service_port: IntOrString::Int(target.protocol.service_port()),
        percent,
        append_headers: BTreeMap::from([
            (REVISION_HEADER.to_owned(), revision.to_owned()),
            (NAMESPACE_HEADER.to_owned(), namespace.to_owned()),
        ]),
    };
    let mut splits = Vec::with_capacity(targets.len());
    for target in targets.iter().filter(|t| t.percent > 0) {
        match rollout.of(&target.configuration, tag).filter(|_| target.latest) {
            Some(config) => {
                splits.extend(config.revisions.iter().map(|r| split(target, &r.revision_name, r.percent)));
            }
            None => splits.push(split(target, &target.revision, target.percent)),
        }
    }
    splits
}

/// The JSON text of an annotation.
fn json<T: serde::Serialize>(value: &T) -> String {
    serde_json::to_string(value).expect("string keys and plain values serialise")
}
