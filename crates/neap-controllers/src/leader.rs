//! Leader election: of several copies one acts, decided by a Lease as upstream's components do (fact D15.1).
//!
//! A holder that cannot renew in time stops its work before anybody else may begin.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use kube::api::PostParams;
use kube::{Api, Client};
use neap_api::keys::config;
use neap_logic::config::{LeaderElection, Settings};
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::autoscaler::Clock;

/// How long work may take to end once the lead is lost; less than the time between the renewal deadline and the end of
/// the Lease.
const DRAIN: Duration = Duration::from_secs(10);

/// A candidate for one Lease.
pub struct Election {
    /// The API.
    pub client: Client,
    /// What is led, in lower case: `controller`, `autoscaler`.
    pub component: String,
    /// Who this is; no two candidates may share it.
    pub identity: String,
    /// The settings.
    pub settings: watch::Receiver<Arc<Settings>>,
    /// The time.
    pub clock: Clock,
}

/// What a look at the Lease means for a candidate.
#[derive(Debug, PartialEq)]
enum Claim {
    /// It is ours, or free: write this.
    Take(Box<Lease>),
    /// Somebody holds it.
    Wait,
}

impl Election {
    /// Waits for the lead, runs `work` with it, and returns when `work` is done, the lead is lost, or `stop`.
    /// `work` must end soon after its token is cancelled.
    pub async fn run<W, F>(self, stop: CancellationToken, work: W)
    where
        W: FnOnce(CancellationToken) -> F,
        F: Future<Output = ()>,
    {
        let name = format!("{}.neap.00-of-01", self.component);
        let mut seen = Seen::default();
        let leases = Api::<Lease>::namespaced(self.client.clone(), config::NAMESPACE);
        loop {
            let election = self.settings.borrow().leader_election.clone();
            let period = election.retry_period;
            tokio::select! {
                () = stop.cancelled() => return,
                held = timeout(election.renew_deadline, self.try_hold(&leases, &name, &mut seen)) => match held {
                    Ok(Ok(true)) => break,
                    Ok(Ok(false)) => {}
                    Ok(Err(error)) => warn!(lease = %name, %error, "the lead cannot be asked for; it is tried again"),
                    Err(_) => warn!(lease = %name, "nobody answers who leads; it is asked again"),
                },
            }
            tokio::select! {
                () = stop.cancelled() => return,
                () = sleep(period) => {}
            }
        }
        info!(lease = %name, identity = %self.identity, "leading");
        let leading = stop.child_token();
        let mut work = pin!(work(leading.clone()));
        tokio::select! {
            () = &mut work => {}
            () = self.keep(&leases, &name, &mut seen) => {
                warn!(lease = %name, "the lead is lost");
                leading.cancel();
                // Whoever does not end in time is dropped: the next one may begin soon.
                if timeout(DRAIN, work).await.is_err() {
                    warn!(lease = %name, "what was led did not end in time");
                }
            }
        }
        leading.cancel();
        if timeout(DRAIN, self.release(&leases, &name)).await.is_err() {
            warn!(lease = %name, "the lead could not be given back in time; it runs out by itself");
        }
    }

    /// Renews until that fails for too long or somebody else holds the Lease.
    async fn keep(&self, leases: &Api<Lease>, name: &str, seen: &mut Seen) {
        let mut renewed = Instant::now();
        loop {
            let election = self.settings.borrow().leader_election.clone();
            sleep(election.retry_period).await;
            let asked = Instant::now();
            // A server that does not answer must not make a leader of somebody whose Lease has run out.
            let left = election.renew_deadline.saturating_sub(renewed.elapsed());
            match timeout(left, self.try_hold(leases, name, seen)).await {
                Ok(Ok(true)) => renewed = asked,
                Ok(Ok(false)) => return,
                Ok(Err(error)) => warn!(lease = %name, %error, "the lead could not be renewed"),
                Err(_) => warn!(lease = %name, "the lead could not be renewed in time"),
            }
            if renewed.elapsed() >= election.renew_deadline {
                return;
            }
        }
    }

    async fn try_hold(&self, leases: &Api<Lease>, name: &str, seen: &mut Seen) -> Result<bool, kube::Error> {
        let election = self.settings.borrow().leader_election.clone();
        let held = leases.get_opt(name).await?;
        let unchanged = seen.unchanged_for(held.as_ref(), Instant::now());
        let claim = claim(held.as_ref(), name, &self.identity, &election, unchanged, self.clock.now());
        let Claim::Take(lease) = claim else { return Ok(false) };
        let written = match held {
            None => leases.create(&PostParams::default(), &lease).await,
            Some(_) => leases.replace(name, &PostParams::default(), &lease).await,
        };
        match written {
            Ok(_) => Ok(true),
            // Another candidate was quicker.
            Err(kube::Error::Api(status)) if status.code == 409 => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Gives the lead back, so that the next one need not wait for it to run out.
    async fn release(&self, leases: &Api<Lease>, name: &str) {
        let Ok(Some(mut lease)) = leases.get_opt(name).await else { return };
        let spec = lease.spec.get_or_insert_default();
        if spec.holder_identity.as_deref() != Some(self.identity.as_str()) {
            return;
        }
        spec.holder_identity = Some(String::new());
        if let Err(error) = leases.replace(name, &PostParams::default(), &lease).await {
            warn!(lease = %name, %error, "the lead could not be given back; it runs out by itself");
        }
    }
}

/// What a candidate last saw of the Lease, and since when by its own clock. The time a holder writes is never compared
/// with ours: the clocks of two machines need not agree.
#[derive(Debug, Default)]
struct Seen {
    record: Option<(LeaseSpec, Instant)>,
}

impl Seen {
    /// For how long the record has been as it is.
    fn unchanged_for(&mut self, held: Option<&Lease>, now: Instant) -> Duration {
        let record = held.and_then(|lease| lease.spec.clone()).unwrap_or_default();
        match &self.record {
            Some((before, since)) if *before == record => now.duration_since(*since),
            _ => {
                self.record = Some((record, now));
                Duration::ZERO
            }
        }
    }
}

fn claim(
    held: Option<&Lease>,
    name: &str,
    identity: &str,
    election: &LeaderElection,
    unchanged: Duration,
    now: Timestamp,
) -> Claim {
    let before = held.and_then(|lease| lease.spec.clone()).unwrap_or_default();
    let holder = before.holder_identity.as_deref().unwrap_or_default();
    let ours = holder == identity;
    let lasts = before.lease_duration_seconds.and_then(|s| u64::try_from(s).ok()).map(Duration::from_secs);
    if !ours && !holder.is_empty() && unchanged < lasts.unwrap_or(election.lease_duration) {
        return Claim::Wait;
    }
    let metadata = held.map_or_else(
        || ObjectMeta {
            name: Some(name.to_owned()),
            namespace: Some(config::NAMESPACE.into()),
            ..ObjectMeta::default()
        },
        |lease| lease.metadata.clone(),
    );
    let seconds = i32::try_from(election.lease_duration.as_secs()).unwrap_or(i32::MAX);
    let spec = LeaseSpec {
        holder_identity: Some(identity.to_owned()),
        lease_duration_seconds: Some(seconds),
        acquire_time: if ours { before.acquire_time } else { Some(MicroTime(now)) },
        renew_time: Some(MicroTime(now)),
        lease_transitions: Some(before.lease_transitions.unwrap_or(0) + i32::from(!ours && held.is_some())),
        ..before
    };
    Claim::Take(Box::new(Lease { metadata, spec: Some(spec) }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lease(holder: &str, renewed: i64) -> Lease {
        Lease {
            metadata: ObjectMeta::default(),
            spec: Some(LeaseSpec {
                holder_identity: Some(holder.into()),
                lease_duration_seconds: Some(60),
                renew_time: Some(MicroTime(Timestamp::from_second(renewed).expect("in range"))),
                lease_transitions: Some(3),
                ..LeaseSpec::default()
            }),
        }
    }

    fn check(held: Option<Lease>, unchanged: u64, want: Option<i32>) {
        let now = Timestamp::from_second(1000).expect("in range");
        let unchanged = Duration::from_secs(unchanged);
        let got = match claim(held.as_ref(), "l", "me", &LeaderElection::default(), unchanged, now) {
            Claim::Wait => None,
            Claim::Take(lease) => {
                let spec = lease.spec.expect("a spec");
                assert_eq!(spec.holder_identity.as_deref(), Some("me"));
                spec.lease_transitions
            }
        };
        assert_eq!(got, want);
    }

    #[test]
    fn a_lease_is_taken_when_it_is_free_ours_or_run_out() {
        check(None, 0, Some(0));
        check(Some(lease("me", 990)), 0, Some(3));
        check(Some(lease("", 990)), 0, Some(4));
        // Whatever the other's clock says.
        for renewed in [0, 990, 5000] {
            check(Some(lease("other", renewed)), 59, None);
            check(Some(lease("other", renewed)), 60, Some(4));
        }
    }

    #[test]
    fn a_record_ages_from_when_it_was_first_seen() {
        let (mut seen, start) = (Seen::default(), Instant::now());
        let mut check = |held: &Lease, after: u64, want: u64| {
            let age = seen.unchanged_for(Some(held), start + Duration::from_secs(after));
            assert_eq!(age, Duration::from_secs(want));
        };
        check(&lease("other", 990), 5, 0);
        check(&lease("other", 990), 65, 60);
        check(&lease("other", 991), 66, 0);
        check(&lease("other", 991), 67, 1);
    }

    #[tokio::test(start_paused = true)]
    async fn a_silent_server_ends_the_lead_in_time() {
        let silent = tower::service_fn(|_: http::Request<kube::client::Body>| {
            std::future::pending::<Result<http::Response<kube::client::Body>, std::convert::Infallible>>()
        });
        let (_keep, settings) = watch::channel(Arc::new(Settings::default()));
        let election = Election {
            client: Client::new(silent, "default"),
            component: "controller".into(),
            identity: "me".into(),
            settings,
            clock: Clock::new(|| Timestamp::from_second(1000).expect("in range")),
        };
        let leases = Api::<Lease>::namespaced(election.client.clone(), config::NAMESPACE);
        let began = Instant::now();
        timeout(Duration::from_secs(3600), election.keep(&leases, "l", &mut Seen::default())).await.expect("it ends");
        let deadline = LeaderElection::default().renew_deadline;
        assert!((deadline..deadline + Duration::from_secs(1)).contains(&began.elapsed()), "{:?}", began.elapsed());
    }

    #[tokio::test(start_paused = true)]
    async fn one_leads_and_the_next_takes_over() {
        let api = neap_testkit::Api::start().await;
        let (_keep, settings) = watch::channel(Arc::new(Settings::default()));
        let candidate = |identity: &str| Election {
            client: api.client(),
            component: "controller".into(),
            identity: identity.into(),
            settings: settings.clone(),
            clock: Clock::starting_at(api.now()),
        };
        let (led, mut leaders) = tokio::sync::mpsc::channel(4);
        let mut tasks = tokio::task::JoinSet::new();
        let stops = [CancellationToken::new(), CancellationToken::new()];
        for (identity, stop) in ["one", "two"].into_iter().zip(&stops) {
            let led = led.clone();
            tasks.spawn(candidate(identity).run(stop.clone(), move |leading| async move {
                led.send(identity).await.expect("the test listens");
                leading.cancelled().await;
            }));
        }
        let first = leaders.recv().await.expect("somebody leads");
        // Renewed for as long as it lives.
        assert!(timeout(Duration::from_secs(600), leaders.recv()).await.is_err());
        stops[usize::from(first == "two")].cancel();
        let second = timeout(Duration::from_secs(15), leaders.recv()).await.expect("soon").expect("the other leads");
        assert_ne!(first, second);
    }
}
