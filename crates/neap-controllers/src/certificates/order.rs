//! One attempt at an order: asks what is next, does it, and writes down whatever a restart would need before it is used.

use std::collections::BTreeSet;

use instant_acme::{
    Account, AuthorizationStatus, CertificateIdentifier, ChallengeStatus, ChallengeType, Error as AcmeError,
    Identifier, KeyAuthorization, NewOrder, Order, OrderStatus,
};
use neap_api::acme::{Answers, Http01Answer, TlsAlpn01Answer};
use neap_logic::certificates::Fault;
use neap_logic::certificates::order::{LOOK, Name, Seen, Status, Step, poll_after, step};
use neap_logic::config::{Acme, ChallengeKind};
use neap_logic::plan::certificate::Issued;
use rcgen::{CertificateParams, CustomExtension, DistinguishedName, KeyPair};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use tokio::time::sleep;

use super::account::{authority, fault};
use super::desk::Ask;
use super::office::Office;
use super::read;
use super::record::Record;

/// Who works at one order, and for whom.
pub(super) struct Attempt<'a> {
    pub(super) office: &'a Office,
    pub(super) ask: &'a Ask,
    pub(super) acme: &'a Acme,
}

impl Attempt<'_> {
    /// Goes on with the order of the record, or begins one. When it fails the record says how far it came.
    pub(super) async fn run(&self, account: &Account, record: &mut Record) -> Result<Issued, Fault> {
        let Acme { directory, challenges, .. } = self.acme;
        let place = authority(directory);
        let kind = challenges[record.refusals as usize % challenges.len()];
        let began = self.office.clock.now();
        let mut order = self.order(account, record).await?;
        let (mut told, mut looks) = (BTreeSet::new(), 0);
        loop {
            let seen = Seen {
                status: status(order.state().status),
                problem: order.state().error.clone().map(|problem| self.fault(None, &AcmeError::Api(problem))),
                names: self.names(&mut order, &told).await?,
                kind,
                began,
                presented: record.presented,
                served: match kind {
                    ChallengeKind::Http01 => self.office.served(&self.ask.key.namespace, &record.answers.http01),
                    ChallengeKind::TlsAlpn01 => None,
                },
                requested: record.key.is_some(),
            };
            let next = step(place, &seen, self.office.clock.now());
            tracing::debug!(certificate = %self.ask.key, ?next, "an order");
            match next {
                Step::Present => {
                    record.answers = self.answers(&mut order, kind).await?;
                    record.presented = Some(self.office.clock.now());
                    self.save(record).await?;
                    self.office.working(self.ask, format!("{place} is to look at {}", self.hosts()), &record.answers);
                }
                Step::AwaitServed => sleep(LOOK).await,
                Step::Tell => {
                    self.tell(&mut order, kind, &mut told).await?;
                    self.office.working(self.ask, format!("{place} looks at {}", self.hosts()), &record.answers);
                    self.refresh(&mut order).await?;
                }
                Step::Poll => {
                    sleep(poll_after(looks)).await;
                    looks += 1;
                    self.refresh(&mut order).await?;
                }
                Step::Request => {
                    let (key, request) = self.request().map_err(|e| self.made(&e))?;
                    record.key = Some(key);
                    self.save(record).await?;
                    order.finalize_csr(&request).await.map_err(|e| self.fault(None, &e))?;
                    self.office.working(self.ask, format!("{place} makes the certificate"), &record.answers);
                }
                Step::Fetch => {
                    let chain = order.certificate().await.map_err(|e| self.fault(None, &e))?;
                    let (Some(chain), Some(key)) = (chain, record.key.clone()) else { continue };
                    let leaf = read::leaf(chain.as_bytes());
                    let Some(leaf) = leaf else {
                        return Err(Fault::unreachable(place, "what it sent is no certificate"));
                    };
                    let issuer = directory.clone();
                    return Ok(Issued { chain, key, authority: None, life: leaf.life, issuer });
                }
                Step::Fail(fault) => return Err(fault),
            }
        }
    }

    async fn order(&self, account: &Account, record: &mut Record) -> Result<Order, Fault> {
        if let Some(url) = record.url.clone() {
            match account.order(url).await {
                Ok(order) => return Ok(order),
                // It has forgotten the order; whatever was done for that one is of no use.
                Err(AcmeError::Api(problem)) if problem.status.is_none_or(|status| status < 500 && status != 429) => {
                    record.give_up();
                }
                Err(error) => return Err(self.fault(None, &error)),
            }
        }
        let identifiers: Vec<Identifier> = self.ask.names.iter().cloned().map(Identifier::Dns).collect();
        let new = || {
            let new = NewOrder::new(&identifiers);
            match &self.acme.profile {
                Some(profile) => new.profile(profile),
                None => new,
            }
        };
        let der = self.ask.replaces.as_ref().and_then(|chain| CertificateDer::from_pem_slice(chain.as_bytes()).ok());
        let replaced = der.as_ref().and_then(|der| CertificateIdentifier::try_from(der).ok());
        let made = match replaced {
            Some(replaced) => match account.new_order(&new().replaces(replaced)).await {
                // It does not take this one for a replacement; then it is an order like any other.
                Err(error) if may_be_for_replacing(&error) => account.new_order(&new()).await,
                made => made,
            },
            None => account.new_order(&new()).await,
        };
        let order = made.map_err(|e| self.fault(Some(&self.hosts()), &e))?;
        record.url = Some(order.url().to_owned());
        self.save(record).await?;
        Ok(order)
    }

    /// What the authority says of each name; only where that matters.
    async fn names(&self, order: &mut Order, told: &BTreeSet<String>) -> Result<Vec<Name>, Fault> {
        if !matches!(order.state().status, OrderStatus::Pending | OrderStatus::Invalid) {
            return Ok(Vec::new());
        }
        let mut names = Vec::new();
        let mut authorizations = order.authorizations();
        while let Some(authorization) = authorizations.next().await {
            let authorization = authorization.map_err(|e| self.fault(None, &e))?;
            let host = authorization.identifier().to_string();
            names.push(match authorization.status {
                AuthorizationStatus::Valid => Name::Shown,
                AuthorizationStatus::Pending => {
                    let begun = authorization.challenges.iter().any(|c| c.status != ChallengeStatus::Pending);
                    let offered = authorization.challenges.iter().filter_map(|challenge| match challenge.r#type {
                        ChallengeType::Http01 => Some(ChallengeKind::Http01),
                        ChallengeType::TlsAlpn01 => Some(ChallengeKind::TlsAlpn01),
                        _ => None,
                    });
                    Name::Open { offered: offered.collect(), told: begun || told.contains(&host) }
                }
                _ => {
                    let problem = authorization.challenges.iter().find_map(|challenge| challenge.error.clone());
                    Name::Failed(match problem {
                        Some(problem) => self.fault(Some(&host), &AcmeError::Api(problem)),
                        None => Fault::of_problem(
                            authority(&self.acme.directory),
                            Some(&host),
                            None,
                            Some("the time to show control over the name is over"),
                        ),
                    })
                }
            });
        }
        Ok(names)
    }

    /// The answers for all names that are open.
    async fn answers(&self, order: &mut Order, kind: ChallengeKind) -> Result<Answers, Fault> {
        let mut answers = Answers { namespace: self.ask.key.namespace.clone(), ..Answers::default() };
        let mut authorizations = order.authorizations();
        while let Some(authorization) = authorizations.next().await {
            let mut authorization = authorization.map_err(|e| self.fault(None, &e))?;
            if authorization.status != AuthorizationStatus::Pending {
                continue;
            }
            let host = authorization.identifier().to_string();
            let Some(challenge) = authorization.challenge(spoken(kind)) else { continue };
            let answer = challenge.key_authorization();
            match kind {
                ChallengeKind::Http01 => answers.http01.push(Http01Answer {
                    host,
                    token: challenge.token.clone(),
                    key_authorization: answer.as_str().to_owned(),
                }),
                ChallengeKind::TlsAlpn01 => {
                    answers.tls_alpn01.push(handshake(host, &answer).map_err(|e| self.made(&e))?);
                }
            }
        }
        Ok(answers)
    }

    async fn tell(&self, order: &mut Order, kind: ChallengeKind, told: &mut BTreeSet<String>) -> Result<(), Fault> {
        let mut authorizations = order.authorizations();
        while let Some(authorization) = authorizations.next().await {
            let mut authorization = authorization.map_err(|e| self.fault(None, &e))?;
            let host = authorization.identifier().to_string();
            if authorization.status != AuthorizationStatus::Pending || told.contains(&host) {
                continue;
            }
            if let Some(mut challenge) = authorization.challenge(spoken(kind)) {
                challenge.set_ready().await.map_err(|e| self.fault(Some(&host), &e))?;
            }
            told.insert(host);
        }
        Ok(())
    }

    async fn refresh(&self, order: &mut Order) -> Result<(), Fault> {
        order.refresh().await.map(drop).map_err(|e| self.fault(None, &e))
    }

    /// A new key, and a request for a certificate with it.
    fn request(&self) -> Result<(String, Vec<u8>), rcgen::Error> {
        let mut params = CertificateParams::new(self.ask.names.clone())?;
        params.distinguished_name = DistinguishedName::new();
        let key = KeyPair::generate()?;
        let request = params.serialize_request(&key)?;
        Ok((key.serialize_pem(), request.der().to_vec()))
    }

    async fn save(&self, record: &Record) -> Result<(), Fault> {
        let saved = record.save(&self.office.client, &self.ask.key, &self.ask.uid).await;
        saved.map_err(|error| {
            let why = format!("the order cannot be written down: {error}");
            Fault::unreachable(authority(&self.acme.directory), &why)
        })
    }

    fn hosts(&self) -> String {
        self.ask.names.join(", ")
    }

    fn fault(&self, host: Option<&str>, error: &AcmeError) -> Fault {
        fault(&self.acme.directory, host, error)
    }

    fn made(&self, error: &rcgen::Error) -> Fault {
        Fault::unreachable(authority(&self.acme.directory), &format!("a key cannot be made: {error}"))
    }
}

/// Whether an order may have been refused only because it says what it replaces. Who wants no more orders, or cannot answer,
/// is not asked again at once.
fn may_be_for_replacing(error: &AcmeError) -> bool {
    match error {
        AcmeError::Api(problem) => {
            let limited = problem.r#type.as_deref().is_some_and(|kind| kind.ends_with(":rateLimited"));
            !limited && problem.status.is_none_or(|status| status < 500 && status != 429)
        }
        AcmeError::Unsupported(_) | AcmeError::Other(_) => true,
        _ => false,
    }
}

fn status(status: OrderStatus) -> Status {
    match status {
        OrderStatus::Pending => Status::Pending,
        OrderStatus::Ready => Status::Ready,
        OrderStatus::Processing => Status::Processing,
        OrderStatus::Valid => Status::Valid,
        OrderStatus::Invalid => Status::Invalid,
    }
}

fn spoken(kind: ChallengeKind) -> ChallengeType {
    match kind {
        ChallengeKind::Http01 => ChallengeType::Http01,
        ChallengeKind::TlsAlpn01 => ChallengeType::TlsAlpn01,
    }
}

/// The certificate that answers in a handshake (RFC 8737, 3).
fn handshake(host: String, answer: &KeyAuthorization) -> Result<TlsAlpn01Answer, rcgen::Error> {
    let mut params = CertificateParams::new(vec![host.clone()])?;
    params.custom_extensions = vec![CustomExtension::new_acme_identifier(answer.digest().as_ref())];
    let key = KeyPair::generate()?;
    let certificate = params.self_signed(&key)?;
    Ok(TlsAlpn01Answer { host, certificate: certificate.pem(), key: key.serialize_pem() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_wants_no_orders_is_not_asked_twice() {
        let check = |kind: &str, status: u16, again: bool| {
            let problem = serde_json::json!({ "type": format!("urn:ietf:params:acme:error:{kind}"), "status": status });
            let problem = serde_json::from_value(problem).expect("a problem");
            assert_eq!(may_be_for_replacing(&AcmeError::Api(problem)), again, "{kind} {status}");
        };
        check("alreadyReplaced", 409, true);
        check("malformed", 400, true);
        check("unauthorized", 403, true);
        check("rateLimited", 429, false);
        check("rateLimited", 403, false);
        check("serverInternal", 500, false);
    }
}
