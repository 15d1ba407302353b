//! Where certificates are made: by the local authority at once, by one outside in as many attempts as it takes, of which only
//! so many are under way at a time.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use instant_acme::{Account, CertificateIdentifier};
use jiff::Timestamp;
use kube::Client;
use neap_api::acme::{Answers, CHALLENGE_PATH, Http01Answer};
use neap_api::networking::Ingress;
use neap_logic::certificates::renewal::Span;
use neap_logic::certificates::{Fault, Kind};
use neap_logic::conditions::is_ready;
use neap_logic::config::Acme;
use neap_logic::names::hash::sha256_hex;
use neap_logic::plan::certificate::{Issued, Progress, challenge};
use neap_logic::plan::meta;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use tokio::sync::{Mutex as Turn, Semaphore};
use tokio::time::{sleep, timeout};
use tracing::{debug, warn};

use super::account::{self, authority};
use super::authority::{Authority, AuthorityError};
use super::desk::{Ask, Board, SUGGESTION};
use super::order::Attempt;
use super::record::Record;
use crate::autoscaler::Clock;
use crate::caches::Caches;
use crate::index::Key;

/// First and longest wait when our own API does not do what a certificate needs.
const RETRY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));
/// An attempt ends itself (`neap_logic::certificates::order::ATTEMPT`), and all that it waits for is bounded; this is beyond
/// all of that. It holds one of few places.
const ENDLESS: Duration = Duration::from_secs(30 * 60);

/// What all who make certificates share.
pub(crate) struct Office {
    pub(super) client: Client,
    pub(super) clock: Clock,
    pub(super) board: Arc<Board>,
    caches: Arc<Caches>,
    /// The account in use, and with which settings it was had. Held while one is being had, so that nobody makes another.
    account: Turn<Option<(Acme, Account)>>,
    slots: Mutex<(usize, Arc<Semaphore>)>,
}

impl Office {
    pub(super) fn new(client: Client, caches: Arc<Caches>, clock: Clock, board: Arc<Board>) -> Self {
        let slots = Mutex::new((0, Arc::new(Semaphore::new(0))));
        Self { client, clock, board, caches, account: Turn::default(), slots }
    }

    /// Works until there is a certificate.
    pub(super) async fn issue(&self, ask: Ask) {
        match ask.acme.clone() {
            None => self.issue_here(&ask).await,
            Some(acme) => self.order(&ask, &acme).await,
        }
    }

    async fn issue_here(&self, ask: &Ask) {
        let mut delay = RETRY.0;
        loop {
            let made: Result<Issued, AuthorityError> = async {
                let now = self.clock.now();
                let authority = Box::pin(Authority::ensure(&self.client, now)).await?;
                self.board.know_local(authority.mark());
                authority.issue(&ask.names, now)
            }
            .await;
            match made {
                Ok(issued) => return self.board.tell(ask, Progress::Issued(Box::new(issued)), Vec::new()),
                Err(error) => self.board.tell(ask, Progress::Failed(meta::chain(&error)), Vec::new()),
            }
            sleep(delay).await;
            delay = delay.saturating_mul(2).min(RETRY.1);
        }
    }

    async fn order(&self, ask: &Ask, acme: &Acme) {
        let mut record = self.record(ask, acme).await;
        loop {
            if let Some((fault, again)) = record.fault.clone().zip(record.again_at) {
                self.rest(ask, &fault, again).await;
            }
            let slots = self.slots(acme.max_orders);
            let slot = slots.acquire().await.expect("the semaphore is never closed");
            self.working(ask, format!("{} is asked", authority(&acme.directory)), &record.answers);
            let mut used = None;
            let attempt = async {
                let account = self.account(acme).await?;
                used = Some(account.id().to_owned());
                Box::pin(Attempt { office: self, ask, acme }.run(&account, &mut record)).await
            };
            let made = timeout(ENDLESS, attempt).await.unwrap_or_else(|_| {
                let why = format!("an attempt was not over after {} minutes", ENDLESS.as_secs() / 60);
                Err(Fault::unreachable(authority(&acme.directory), &why))
            });
            drop(slot);
            match made {
                Ok(issued) => {
                    tracing::info!(certificate = %ask.key, issuer = issued.issuer, until = %issued.life.to, "issued");
                    return self.board.tell(ask, Progress::Issued(Box::new(issued)), Vec::new());
                }
                Err(fault) => self.failed(ask, acme, &mut record, fault, used.as_deref()).await,
            }
        }
    }

    /// What is kept of an earlier attempt at the same; the API is asked until it answers.
    async fn record(&self, ask: &Ask, acme: &Acme) -> Record {
        let settings = sha256_hex(format!("{acme:?}").as_bytes());
        let mut delay = RETRY.0;
        loop {
            match Record::load(&self.client, &ask.uid).await {
                Ok(Some(record)) if record.directory == acme.directory && record.names == ask.names => {
                    // Whoever changed how it is asked need not wait until what was wrong before is tried again.
                    let changed = record.settings != settings;
                    let again_at = record.again_at.filter(|_| !changed);
                    return Record { settings, again_at, ..record };
                }
                Ok(_) => {
                    let (directory, names) = (acme.directory.clone(), ask.names.clone());
                    return Record { directory, names, settings, ..Record::default() };
                }
                Err(error) => {
                    let sentence = format!("what was ordered before cannot be read: {error}");
                    self.board.tell(ask, Progress::Failed(sentence), Vec::new());
                }
            }
            sleep(delay).await;
            delay = delay.saturating_mul(2).min(RETRY.1);
        }
    }

    /// `used`: the account that it was asked for with.
    async fn failed(&self, ask: &Ask, acme: &Acme, record: &mut Record, fault: Fault, used: Option<&str>) {
        warn!(certificate = %ask.key, fault = fault.message, "a certificate was not issued");
        record.failures = record.failures.saturating_add(1);
        record.again_at = Some(fault.again_at(record.failures, self.clock.now()));
        match fault.kind {
            // The order stands; it goes on when the authority is there again.
            Kind::Unreachable => {}
            Kind::RateLimited => record.give_up(),
            Kind::Refused => {
                record.refusals = record.refusals.saturating_add(1);
                record.give_up();
            }
            Kind::NoAccount => {
                record.give_up();
                let mut held = self.account.lock().await;
                // Of several that fail so at once the others find it forgotten, or another one made since.
                if held.as_ref().is_some_and(|(_, account)| Some(account.id()) == used) {
                    self.forget(&mut held, acme).await;
                }
            }
        }
        record.fault = Some(fault);
        if let Err(error) = record.save(&self.client, &ask.key, &ask.uid).await {
            warn!(certificate = %ask.key, %error, "what went wrong is not written down, and forgotten at a restart");
        }
    }

    /// Leaves the authority alone for a while, and says why.
    async fn rest(&self, ask: &Ask, fault: &Fault, again: Timestamp) {
        let left = again.duration_since(self.clock.now());
        let Ok(left) = Duration::try_from(left) else { return };
        let when = Timestamp::from_second(again.as_second()).unwrap_or(again);
        let sentence = format!("{}; it is tried again at {when}", fault.message);
        self.board.tell(ask, Progress::Failed(sentence), Vec::new());
        sleep(left).await;
    }

    /// Says what is being done.
    pub(super) fn working(&self, ask: &Ask, what: String, answers: &Answers) {
        let challenges =
            answers.http01.iter().map(|answer| challenge(&ask.key.namespace, &answer.host, &answer.token)).collect();
        self.board.tell(ask, Progress::Working(what), challenges);
    }

    /// Whether every Ingress that names one of these hosts leads its challenge on; `None` when none names them.
    pub(super) fn served(&self, namespace: &str, answers: &[Http01Answer]) -> Option<bool> {
        let ingresses: Vec<Arc<Ingress>> = self
            .caches
            .store::<Ingress>()
            .map(|store| store.read(|index| index.in_namespace(namespace).cloned().collect()))
            .unwrap_or_default();
        let mut named = answers.iter().flat_map(|answer| {
            let rules = ingresses.iter().flat_map(|ingress| ingress.spec.rules.iter().map(move |rule| (ingress, rule)));
            rules.filter(|(_, rule)| rule.hosts.contains(&answer.host)).map(move |(ingress, rule)| {
                let path = format!("{CHALLENGE_PATH}{}", answer.token);
                let leads = rule.http.iter().flat_map(|http| &http.paths).any(|rule| rule.path == path);
                let status = ingress.status.as_ref();
                leads
                    && status
                        .is_some_and(|s| is_ready(&s.conditions, s.observed_generation, ingress.metadata.generation))
            })
        });
        let first = named.next()?;
        Some(first && named.all(|served| served))
    }

    /// Asks when the authority would like a certificate renewed.
    pub(super) async fn suggest(&self, key: &Key, acme: &Acme, chain: &str) {
        let Ok(der) = CertificateDer::from_pem_slice(chain.as_bytes()) else { return };
        let Ok(id) = CertificateIdentifier::try_from(&der) else { return };
        let answer = match self.account(acme).await {
            Ok(account) => account.renewal_info(&id).await,
            Err(fault) => return debug!(certificate = %key, fault = fault.message, "no window to renew in is known"),
        };
        match answer {
            Ok((info, again)) => {
                let at = |time: i64| Timestamp::from_second(time).ok();
                let window = info.suggested_window;
                let span = at(window.start.unix_timestamp()).zip(at(window.end.unix_timestamp()));
                let span = span.map(|(from, to)| Span { from, to });
                self.board.suggest(key, chain, span, again.clamp(RETRY.1, SUGGESTION));
            }
            Err(error) => {
                debug!(certificate = %key, %error, "the authority suggests no time to renew");
                self.board.suggest(key, chain, None, SUGGESTION);
            }
        }
    }

    async fn account(&self, acme: &Acme) -> Result<Account, Fault> {
        let mut held = self.account.lock().await;
        if let Some((_, account)) = held.as_ref().filter(|(of, _)| of == acme) {
            return Ok(account.clone());
        }
        let account = match Box::pin(account::account(&self.client, acme)).await {
            Err(fault) if fault.kind == Kind::NoAccount => {
                self.forget(&mut held, acme).await;
                return Err(fault);
            }
            account => account?,
        };
        *held = Some((acme.clone(), account.clone()));
        Ok(account)
    }

    async fn forget(&self, held: &mut Option<(Acme, Account)>, acme: &Acme) {
        *held = None;
        if let Err(error) = account::forget(&self.client, &acme.directory).await {
            warn!(%error, "an account that is no good stays");
        }
    }

    fn slots(&self, max: usize) -> Arc<Semaphore> {
        let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        if slots.0 != max {
            *slots = (max, Arc::new(Semaphore::new(max)));
        }
        slots.1.clone()
    }
}
