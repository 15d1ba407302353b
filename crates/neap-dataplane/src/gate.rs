//! What is live about one Revision (or one plain Service): its instances, the requests they have, and those that
//! wait for them.
//!
//! Shared by all workers behind one short lock, taken once when a request comes and once when it has ended. The rules
//! of who goes where are `neap_logic::throttle`; here they meet time and tasks.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use neap_logic::routing::{Port, RevisionKey};
use neap_logic::throttle::{Acquired, Capacity, Grant, Throttle, Ticket, Woken};
use neap_proxy::{Limits, Protocol};
use tokio::sync::{Notify, oneshot};
use tokio::time::Instant;

use crate::extras::affinity::Prefer;
use crate::plane::Wakes;
use crate::stats::{Account, Stat, Totals};

/// An instance that refused a connection is left alone for this long at first; the time doubles with each further
/// refusal. Short, for a fresh instance may be called ready a moment before it listens.
const SUSPEND_FIRST: Duration = Duration::from_millis(10);
/// And for this long at most.
const SUSPEND_MOST: Duration = Duration::from_secs(1);
/// The most for one that was waited for in vain: as long as that took at first, since trying it costs a request all of it;
/// but it may be the only one, and a network recovers.
const SUSPEND_SILENT_MOST: Duration = Duration::from_secs(10);
/// Refusals are forgotten after this time without another one.
const SUSPEND_FORGET: Duration = Duration::from_secs(10);
/// A Revision without instances is asked for again after this time, should the first call have been lost.
const WAKE_AGAIN: Duration = Duration::from_secs(1);

/// Whose gate it is.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum GateName {
    Revision(RevisionKey),
    Service { namespace: String, name: String, port: Port },
}

impl std::fmt::Display for GateName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Revision(key) => write!(f, "revision {key}"),
            Self::Service { namespace, name, port } => write!(f, "service {namespace}/{name} port {port}"),
        }
    }
}

/// What does not change while a gate lives; a Revision's spec is immutable.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Settings {
    pub(crate) limits: Limits,
    pub(crate) protocol: Protocol,
    /// Requests one instance takes at once; 0 is no limit.
    pub(crate) container_concurrency: u32,
    /// Requests that may wait.
    pub(crate) depth: usize,
    /// The Service a Revision belongs to, whose rules hold also for those who call the Revision by its own name.
    pub(crate) service: Option<Arc<str>>,
}

/// Where a woken request goes. A gate that is retired lets go of those who wait without one.
pub(crate) type Leave = Grant<SocketAddr>;
type Waiter = oneshot::Sender<Leave>;

#[derive(Debug)]
pub(crate) struct Gate {
    pub(crate) name: GateName,
    pub(crate) settings: Settings,
    live: Mutex<Live>,
    /// An instance that gets no more requests has given one back, or has just been taken out.
    left: Notify,
    wakes: Wakes,
}

#[derive(Debug)]
struct Live {
    throttle: Throttle<SocketAddr, Waiter>,
    account: Account,
    /// The instances the world says are ready.
    wanted: Vec<SocketAddr>,
    suspended: Vec<Suspended>,
    /// When an instance was last asked for.
    asked: Option<Instant>,
    /// Some instance outside `wanted` still has requests.
    leaving: bool,
    service: Service,
    /// It is in the list of gates with suspended instances.
    listed: bool,
}

/// Whether the gate is in service.
#[derive(Debug)]
enum Service {
    Open,
    /// Its requests go to this one, if there is one.
    Retired(Option<Arc<Gate>>),
}

#[derive(Debug)]
struct Suspended {
    addr: SocketAddr,
    until: Instant,
    refusals: u32,
    out: bool,
}

/// How a request comes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Comes {
    /// For the first time.
    First,
    /// For the first time, and somebody else counts it.
    Apart,
    /// It has been here before, and the instance did not take it.
    Again,
}

/// The answer to a request that wants in.
pub(crate) enum Entry {
    Enter(Leave),
    Wait(Waiting),
    Full {
        depth: usize,
    },
    /// The gate is out of service; the request may try the one that came after it, and is not counted here.
    Gone(Option<Arc<Gate>>),
}

/// A place in the queue.
pub(crate) struct Waiting {
    pub(crate) ticket: Ticket,
    pub(crate) leave: oneshot::Receiver<Leave>,
    /// When a suspended instance may be tried again: somebody has to ask then.
    pub(crate) retry: Option<Instant>,
    /// There is no instance at all.
    pub(crate) empty: bool,
}

impl Gate {
    pub(crate) fn new(name: GateName, settings: Settings, wakes: Wakes, now: Instant) -> Self {
        let live = Live {
            throttle: Throttle::new(settings.container_concurrency, settings.depth),
            account: Account::new(now),
            wanted: Vec::new(),
            suspended: Vec::new(),
            asked: None,
            leaving: false,
            service: Service::Open,
            listed: false,
        };
        Self { name, settings, live: Mutex::new(live), left: Notify::new(), wakes }
    }

    /// A request asks for a place, and may have a wish.
    pub(crate) fn enter(&self, now: Instant, comes: Comes, prefer: Option<&Prefer>) -> Entry {
        let mut live = self.lock();
        if let Service::Retired(successor) = &live.service {
            return Entry::Gone(successor.clone());
        }
        if comes == Comes::First {
            live.account.begin(now);
        }
        let woken = live.readmit(now, &self.settings);
        let mut leave = None;
        let wait = || {
            let (waiter, receiver) = oneshot::channel();
            leave = Some(receiver);
            waiter
        };
        let random = fastrand::u64(..);
        // While anybody waits no instance has room, so that nobody is passed over by a wish.
        let wished =
            prefer.and_then(|prefer| live.throttle.acquire_best(|addr, in_flight| prefer.score(addr, in_flight)));
        let acquired = match wished {
            Some(grant) => Acquired::Granted(grant),
            None if comes == Comes::Again => live.throttle.acquire_again(random, wait),
            None => live.throttle.acquire(random, wait),
        };
        let (entry, ask) = match acquired {
            Acquired::Granted(grant) => (Entry::Enter(grant), false),
            Acquired::Full => {
                live.account.totals().refused += 1;
                (Entry::Full { depth: self.settings.depth }, false)
            }
            Acquired::Wait(ticket) => {
                let leave = leave.expect("a request that waits has made its channel");
                if comes != Comes::Again {
                    live.account.totals().waited += 1;
                }
                let (retry, empty) = live.outlook();
                let ask = empty && live.ask(now);
                (Entry::Wait(Waiting { ticket, leave, retry, empty }), ask)
            }
        };
        drop(live);
        self.hand_over(woken);
        if ask {
            self.wake();
        }
        entry
    }

    /// A second place for a request that has one at `avoid`: at another instance, or none. It never waits.
    pub(crate) fn enter_other(&self, avoid: &SocketAddr) -> Option<Leave> {
        let least_busy = |addr: &SocketAddr, busy: u32| (addr != avoid).then(|| u64::from(u32::MAX - busy));
        self.lock().throttle.acquire_best(least_busy)
    }

    /// Counts a request that takes its places by itself.
    pub(crate) fn begin(&self, now: Instant) {
        self.lock().account.begin(now);
    }

    /// Whether an instance is one of those that are ready, busy or not.
    pub(crate) fn has(&self, addr: &SocketAddr) -> bool {
        self.lock().wanted.binary_search(addr).is_ok()
    }

    /// Lets suspended instances in again whose time has come, and tells one who waits what it may expect now.
    pub(crate) fn try_again(&self, waiting: &mut Waiting, now: Instant) {
        let mut live = self.lock();
        let woken = live.readmit(now, &self.settings);
        (waiting.retry, waiting.empty) = live.outlook();
        let ask = waiting.empty && live.ask(now);
        drop(live);
        self.hand_over(woken);
        if ask {
            self.wake();
        }
    }

    fn wake(&self) {
        if let GateName::Revision(key) = &self.name {
            self.wakes.send(key);
        }
    }

    /// A request stops waiting. If it was woken in the same moment its place is given back.
    pub(crate) fn cancel(&self, mut waiting: Waiting) {
        let cancelled = self.lock().throttle.cancel(waiting.ticket);
        if cancelled.is_none()
            && let Ok(grant) = waiting.leave.try_recv()
        {
            self.leave(grant);
        }
    }

    /// A place is given back; the request itself goes on elsewhere.
    pub(crate) fn leave(&self, grant: Leave) {
        let mut live = self.lock();
        let woken = live.throttle.release(grant, fastrand::u64(..));
        let left = live.leaving;
        drop(live);
        self.hand_over(woken);
        if left {
            self.left.notify_waiters();
        }
    }

    /// A request has ended, having had a place or not.
    pub(crate) fn end(&self, grant: Option<Leave>, now: Instant, arrived: Instant, status: Option<http::StatusCode>) {
        let mut live = self.lock();
        live.account.end(now, arrived, status);
        let woken = grant.and_then(|grant| live.throttle.release(grant, fastrand::u64(..)));
        let left = live.leaving;
        drop(live);
        self.hand_over(woken);
        if left {
            self.left.notify_waiters();
        }
    }

    /// An instance did not accept a connection: it is left alone for a moment, or for longer when it said nothing at all
    /// for `silent`.
    pub(crate) fn refused(self: &Arc<Self>, grant: Leave, now: Instant, silent: Option<Duration>) {
        let addr = grant.instance;
        {
            let mut live = self.lock();
            live.throttle.withdraw(&addr);
            live.suspend(addr, now, silent);
            if !std::mem::replace(&mut live.listed, true) {
                // Those who wait already have no timer, and whoever has one may go away.
                self.wakes.suspended.add(self);
            }
        }
        self.leave(grant);
    }

    /// Takes the gate out of service: it gets no more requests, and those that wait go on to `successor`.
    pub(crate) fn retire(&self, successor: Option<Arc<Self>>, now: Instant) {
        self.set_instances(Vec::new(), now);
        let mut live = self.lock();
        live.service = Service::Retired(successor);
        // Being let go of is what tells them.
        let waiting = live.throttle.dismiss();
        drop(live);
        drop(waiting);
    }

    /// These instances are ready now, and no others.
    pub(crate) fn set_instances(&self, mut addrs: Vec<SocketAddr>, now: Instant) {
        addrs.sort_unstable();
        addrs.dedup();
        let mut live = self.lock();
        if live.wanted == addrs {
            return;
        }
        // An instance that was gone and is back has earned a fresh try.
        let known = std::mem::replace(&mut live.wanted, addrs);
        let wanted = live.wanted.clone();
        live.suspended.retain(|s| known.contains(&s.addr) && wanted.contains(&s.addr));
        if !wanted.is_empty() {
            live.asked = None;
        }
        let woken = live.admit(now, &self.settings);
        drop(live);
        self.hand_over(woken);
        self.left.notify_waiters();
    }

    /// Whether an instance may get requests, or still has some.
    pub(crate) fn is_busy(&self, is: &(dyn Fn(&SocketAddr) -> bool + Sync)) -> bool {
        let live = self.lock();
        live.wanted.iter().any(is) || live.throttle.leaving().any(|(addr, n)| n > 0 && is(addr))
    }

    /// Requests one instance has.
    pub(crate) fn in_flight_of(&self, addr: &SocketAddr) -> u32 {
        self.lock().throttle.in_flight_of(addr)
    }

    /// Resolves when [`Self::is_busy`] is no longer true.
    pub(crate) async fn drained(&self, is: &(dyn Fn(&SocketAddr) -> bool + Sync)) {
        loop {
            let left = self.left.notified();
            tokio::pin!(left);
            left.as_mut().enable();
            if !self.is_busy(is) {
                return;
            }
            left.await;
        }
    }

    /// What happened since the last call. `None` for a plain Service, which nobody scales.
    pub(crate) fn collect(&self, now: Instant) -> Option<Stat> {
        let GateName::Revision(revision) = &self.name else { return None };
        let mut live = self.lock();
        let (average_concurrency, request_count, seconds) = live.account.collect(now);
        Some(Stat {
            revision: revision.clone(),
            average_concurrency,
            request_count,
            seconds,
            concurrency: live.account.present(),
            waiting: u32::try_from(live.throttle.waiting()).unwrap_or(u32::MAX),
            instances: u32::try_from(live.wanted.len()).unwrap_or(u32::MAX),
        })
    }

    /// Requests present, those that wait included.
    pub(crate) fn present(&self) -> u32 {
        self.lock().account.present()
    }

    pub(crate) fn observe(&self) -> Observed {
        let mut live = self.lock();
        Observed {
            present: live.account.present(),
            waiting: live.throttle.waiting(),
            instances: live.throttle.instances().map(|(addr, n)| (*addr, n)).collect(),
            leaving: live.throttle.leaving().map(|(addr, n)| (*addr, n)).collect(),
            ready: live.wanted.len(),
            totals: live.account.totals().clone(),
        }
    }

    /// Lets in again whose time has come; false when nobody is left out.
    fn is_suspending(&self, now: Instant) -> bool {
        let mut live = self.lock();
        let woken = live.readmit(now, &self.settings);
        live.listed = live.suspended.iter().any(|s| s.out);
        let listed = live.listed;
        drop(live);
        self.hand_over(woken);
        listed
    }

    /// Wakes who can go. One who has gone away in the meantime lets go of the place, which may wake the next.
    fn hand_over(&self, woken: impl IntoIterator<Item = Woken<SocketAddr, Waiter>>) {
        let mut next: Vec<_> = woken.into_iter().collect();
        while let Some(Woken { waiter, grant }) = next.pop() {
            if let Err(grant) = waiter.send(grant) {
                next.extend(self.lock().throttle.release(grant, fastrand::u64(..)));
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Live> {
        // No code that runs under the lock leaves it half-done by panicking.
        self.live.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Gates with suspended instances. Whoever begins to wait beside one has a timer for it; this is for all others, once in
/// a sweep.
#[derive(Debug, Clone, Default)]
pub(crate) struct Suspensions(Arc<Mutex<Vec<Weak<Gate>>>>);

impl Suspensions {
    fn add(&self, gate: &Arc<Gate>) {
        self.lock().push(Arc::downgrade(gate));
    }

    /// Lets instances in again whose time has come.
    pub(crate) fn sweep(&self, now: Instant) {
        let listed = std::mem::take(&mut *self.lock());
        let left: Vec<_> =
            listed.into_iter().filter(|gate| gate.upgrade().is_some_and(|gate| gate.is_suspending(now))).collect();
        if !left.is_empty() {
            self.lock().extend(left);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Weak<Gate>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A gate as it is now, for metrics and for people.
#[derive(Debug, Clone)]
pub(crate) struct Observed {
    pub(crate) present: u32,
    pub(crate) waiting: usize,
    pub(crate) instances: Vec<(SocketAddr, u32)>,
    pub(crate) leaving: Vec<(SocketAddr, u32)>,
    pub(crate) ready: usize,
    pub(crate) totals: Totals,
}

impl Live {
    /// Whether somebody should be told that an instance is needed.
    fn ask(&mut self, now: Instant) -> bool {
        let ask = self.asked.is_none_or(|asked| now >= asked + WAKE_AGAIN);
        if ask {
            self.asked = Some(now);
            self.account.totals().wakes += 1;
        }
        ask
    }

    fn suspend(&mut self, addr: SocketAddr, now: Instant, silent: Option<Duration>) {
        let (first, most) = match silent {
            None => (SUSPEND_FIRST, SUSPEND_MOST),
            Some(silent) => (silent.min(SUSPEND_SILENT_MOST), SUSPEND_SILENT_MOST),
        };
        match self.suspended.iter_mut().find(|s| s.addr == addr) {
            // Two requests refused at the same time are one refusal.
            Some(known) if known.out => {}
            Some(known) => {
                let pause = first.saturating_mul(1 << known.refusals.min(16)).min(most);
                known.refusals += 1;
                known.until = now + pause;
                known.out = true;
            }
            None if self.wanted.contains(&addr) => {
                self.suspended.push(Suspended { addr, until: now + first, refusals: 1, out: true });
            }
            None => {}
        }
    }

    /// When a suspended instance may be tried again, and whether there is no instance at all.
    fn outlook(&self) -> (Option<Instant>, bool) {
        let retry = self.suspended.iter().filter(|s| s.out).map(|s| s.until).min();
        (retry, self.wanted.is_empty())
    }

    /// Lets suspended instances in again whose time has come.
    fn readmit(&mut self, now: Instant, settings: &Settings) -> Vec<Woken<SocketAddr, Waiter>> {
        if self.suspended.is_empty() {
            return Vec::new();
        }
        let due = self.suspended.iter().any(|s| s.out && now >= s.until);
        self.suspended.retain(|s| now < s.until + SUSPEND_FORGET);
        if due { self.admit(now, settings) } else { Vec::new() }
    }

    /// Tells the throttle which instances there are.
    fn admit(&mut self, now: Instant, settings: &Settings) -> Vec<Woken<SocketAddr, Waiter>> {
        for suspended in &mut self.suspended {
            suspended.out = now < suspended.until;
        }
        let capacity = Capacity::of_instance(settings.container_concurrency);
        let out = |addr: &SocketAddr| self.suspended.iter().any(|s| s.out && s.addr == *addr);
        let instances: Vec<_> = self.wanted.iter().filter(|addr| !out(addr)).map(|addr| (*addr, capacity)).collect();
        let woken = self.throttle.set_instances(instances, || fastrand::u64(..));
        let wanted = &self.wanted;
        self.leaving = self.throttle.leaving().any(|(addr, _)| !wanted.contains(addr));
        woken
    }
}

#[cfg(test)]
mod tests;
