//! Certificate of our own class: its Secret, kept filled and renewed, and what there is to say about it (facts A6.6, D10).
//!
//! Who issues works beside this and says how far it is; a certificate that is still good stays in use while it is renewed, and
//! while that fails.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use neap_api::condition::{READY, find};
use neap_api::keys::{neap, networking};
use neap_api::networking::{Certificate, Http01Challenge};

use super::ensure::{Match, controller_ref, ensure};
use super::{Context, ObjectRef, Plan, Write, meta};
use crate::certificates::renewal::{Span, renew_at, until};
use crate::certificates::{Issuer, issuer};
use crate::conditions::{self, Conditions};

/// Says that another certificate is being had while this one is good (A6.6).
pub const RENEWING: &str = "Renewing";
/// Keys of a Secret with a certificate.
pub const CHAIN: &str = "tls.crt";
/// See [`CHAIN`].
pub const KEY: &str = "tls.key";
/// The authority, where nobody trusts it by default.
pub const AUTHORITY: &str = "ca.crt";
const SECRET_TYPE: &str = "kubernetes.io/tls";
/// What marks certificates of the local authority; its fingerprint follows.
pub const LOCAL: &str = "local/";

/// What a Secret holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Held {
    /// From when to when it is good.
    pub life: Span,
    /// The names in it.
    pub names: Vec<String>,
    /// Who issued it: the URL of a directory, or the mark of the local authority.
    pub issuer: String,
}

/// A certificate that was issued and is not written yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Issued {
    /// It and what leads to its authority, PEM.
    pub chain: String,
    /// Its key, PEM.
    pub key: String,
    /// The authority, where nobody trusts it by default; PEM.
    pub authority: Option<String>,
    /// From when to when it is good.
    pub life: Span,
    /// Who issued it.
    pub issuer: String,
}

/// How far whoever issues is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Progress {
    /// Nobody has begun.
    #[default]
    Idle,
    /// It is under way.
    Working(String),
    /// It is there.
    Issued(Box<Issued>),
    /// It failed, and is tried again: a sentence.
    Failed(String),
}

/// A Certificate and everything known of it.
#[derive(Debug, Clone)]
pub struct Observed {
    /// The Certificate.
    pub certificate: Arc<Certificate>,
    /// The Secret of its name, whoever made it.
    pub secret: Option<Arc<Secret>>,
    /// What that Secret holds, when it can be read.
    pub held: Option<Held>,
    /// When the authority would like it renewed.
    pub suggested: Option<Span>,
    /// The mark of the local authority, once it is known.
    pub local: Option<String>,
    /// The Secret of its order, while there is one.
    pub order: Option<Arc<Secret>>,
    /// How far whoever issues is.
    pub progress: Progress,
    /// HTTP-01 challenges to be answered.
    pub challenges: Vec<Http01Challenge>,
    /// Everything else.
    pub context: Context,
}

/// What has to be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Need {
    /// Nothing before then.
    Nothing {
        /// When it is renewed.
        renew_at: Timestamp,
    },
    /// A certificate is to be had.
    Issue(Issuer),
    /// The Secret belongs to somebody else.
    Foreign,
}

/// Whether we make it.
pub fn is_ours(certificate: &Certificate) -> bool {
    let spellings = [networking::CERTIFICATE_CLASS, networking::CERTIFICATE_CLASS_ALT];
    meta::annotation_of(&certificate.metadata, &spellings) == Some(networking::NEAP_CERTIFICATE_CLASS)
}

/// The name of the Secret of a Certificate's order, in `knative-serving`.
pub fn order_name(uid: &str) -> String {
    format!("acme-{uid}")
}

/// What has to be done; [`Observed::progress`] plays no part in it.
pub fn need(o: &Observed) -> Need {
    let own = &o.certificate.metadata;
    let uid = own.uid.as_deref().unwrap_or_default();
    let spec = &o.certificate.spec;
    let label = |secret: &Arc<Secret>| meta::label(&secret.metadata, networking::CERTIFICATE_UID) == Some(uid);
    if o.secret.as_ref().is_some_and(|secret| !label(secret)) {
        return Need::Foreign;
    }
    let settings = &o.context.settings;
    let kind = meta::label(own, networking::CERTIFICATE_TYPE).unwrap_or_default();
    let wanted = issuer(kind, &spec.dns_names, settings.neap.acme.as_ref(), &settings.neap.cluster_domain);
    let good = o.held.as_ref().filter(|held| covers(held, &spec.dns_names)).filter(|held| match &wanted {
        Issuer::Local => match &o.local {
            Some(mark) => held.issuer == *mark,
            None => held.issuer.starts_with(LOCAL),
        },
        Issuer::Acme => settings.neap.acme.as_ref().is_some_and(|acme| acme.directory == held.issuer),
        Issuer::Nobody(_) => true,
    });
    let renew_at = good.map(|held| renew_at(held.life, o.suggested, uid));
    match renew_at {
        Some(renew_at) if renew_at > o.context.now => Need::Nothing { renew_at },
        _ => Need::Issue(wanted),
    }
}

fn covers(held: &Held, names: &[String]) -> bool {
    names.iter().all(|name| held.names.iter().any(|held| held.eq_ignore_ascii_case(name)))
}

/// Decides.
pub fn plan(o: &Observed) -> Plan {
    let mut plan = Plan::default();
    let certificate = o.certificate.as_ref();
    if certificate.metadata.deletion_timestamp.is_some() {
        return plan;
    }
    let now = o.context.now;
    let mut status = certificate.status.clone().unwrap_or_default();
    let mut c = Conditions::new(conditions::CERTIFICATE, &status.conditions, now);
    status.observed_generation = certificate.metadata.generation.unwrap_or_default();
    status.http01_challenges.clear();
    match need(o) {
        Need::Foreign => {
            let name = &certificate.spec.secret_name;
            let message = format!("There is an existing Secret {name:?} that this Certificate did not make.");
            c.clear(RENEWING);
            c.mark_false(READY, "NotOwned", &message);
        }
        Need::Nothing { renew_at } => {
            c.clear(RENEWING);
            c.mark_true(READY);
            status.not_after = o.held.as_ref().map(|held| Time(held.life.to));
            // Left over when the process ended between the two writes.
            if let Some(order) = &o.order {
                plan.write(Some(Write::Delete(ObjectRef::of(order.as_ref()))));
            }
            plan.again_in(Duration::try_from(until(renew_at, now)).unwrap_or_default());
        }
        Need::Issue(by) => issue(o, &by, &mut plan, &mut c, &mut status.not_after, &mut status.http01_challenges),
    }
    status.conditions = c.into_vec();
    plan.set_status(certificate.status.as_ref(), &status);
    plan
}

fn issue(
    o: &Observed,
    by: &Issuer,
    plan: &mut Plan,
    c: &mut Conditions,
    not_after: &mut Option<Time>,
    challenges: &mut Vec<Http01Challenge>,
) {
    let now = o.context.now;
    let name = &o.certificate.spec.secret_name;
    if let Progress::Issued(issued) = &o.progress {
        if let Some(refusal) = o.context.refusal::<Secret>(name) {
            c.mark_false(READY, "ReconcileFailed", &format!("Secret {name:?} cannot be written: {}", refusal.message));
            return;
        }
        plan.write(ensure(o.secret.as_deref(), &secret(o, issued), Match::Exact));
        // The order holds the only other copy of the key.
        plan.only_then();
        if let Some(order) = &o.order {
            plan.write(Some(Write::Delete(ObjectRef::of(order.as_ref()))));
        }
        plan.normal("Issued", format!("{} issued a certificate that is good until {}", issued.issuer, issued.life.to));
        *not_after = Some(Time(issued.life.to));
        c.clear(RENEWING);
        c.mark_true(READY);
        return;
    }
    let (failed, sentence) = match (by, &o.progress) {
        (Issuer::Nobody(why), _) => (true, why.as_str()),
        (_, Progress::Failed(why)) => (true, why.as_str()),
        (_, Progress::Working(what)) => (false, what.as_str()),
        _ => (false, "a certificate is asked for"),
    };
    let before = find(&o.certificate.status.clone().unwrap_or_default().conditions, READY).cloned();
    if failed
        && before.is_none_or(|before| before.message != sentence)
        && c.get(RENEWING).is_none_or(|r| r.message != sentence)
    {
        plan.warning("IssueFailed", sentence);
    }
    challenges.clone_from(&o.challenges);
    let good = o.held.as_ref().filter(|held| held.life.to > now && covers(held, &o.certificate.spec.dns_names));
    match good {
        Some(held) => {
            *not_after = Some(Time(held.life.to));
            c.mark_true_because(RENEWING, if failed { "RenewalFailed" } else { "InProgress" }, sentence);
            c.mark_true(READY);
        }
        None => {
            *not_after = None;
            c.clear(RENEWING);
            match failed {
                true => c.mark_false(
                    READY,
                    if matches!(by, Issuer::Nobody(_)) { "NotSupported" } else { "IssueFailed" },
                    sentence,
                ),
                false => c.mark_unknown(READY, "InProgress", sentence),
            }
        }
    }
    plan.because(sentence);
}

fn secret(o: &Observed, issued: &Issued) -> Secret {
    let own = &o.certificate.metadata;
    let bytes = |text: &str| ByteString(text.as_bytes().to_vec());
    let mut data = BTreeMap::from([(CHAIN.to_owned(), bytes(&issued.chain)), (KEY.to_owned(), bytes(&issued.key))]);
    if let Some(authority) = &issued.authority {
        data.insert(AUTHORITY.into(), bytes(authority));
    }
    Secret {
        metadata: ObjectMeta {
            name: Some(o.certificate.spec.secret_name.clone()),
            namespace: own.namespace.clone(),
            labels: Some(BTreeMap::from([(
                networking::CERTIFICATE_UID.to_owned(),
                own.uid.clone().unwrap_or_default(),
            )])),
            annotations: Some(BTreeMap::from([(neap::ISSUER.to_owned(), issued.issuer.clone())])),
            owner_references: Some(vec![controller_ref(o.certificate.as_ref())]),
            ..ObjectMeta::default()
        },
        data: Some(data),
        type_: Some(SECRET_TYPE.into()),
        ..Secret::default()
    }
}

/// The challenges as Knative's Routes and DomainMappings put them into their Ingresses (A6.6, F1.11), which may name Services
/// of their own namespace only. The gateway answers by itself; no such Service is ever asked.
pub fn challenge(namespace: &str, host: &str, token: &str) -> Http01Challenge {
    Http01Challenge {
        url: format!("http://{host}{}{token}", neap_api::acme::CHALLENGE_PATH),
        service_name: neap_api::acme::SOLVER.into(),
        service_namespace: namespace.into(),
        service_port: k8s_openapi::apimachinery::pkg::util::intstr::IntOrString::Int(80),
    }
}

#[cfg(test)]
#[path = "certificate_tests.rs"]
mod tests;
