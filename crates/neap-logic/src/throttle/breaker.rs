//! Accounting of requests in flight and in wait for one Revision.
//!
//! What holds between calls: no instance has more requests in flight than its capacity, unless the capacity shrank
//! under them; while anybody waits, no instance has room; whoever waited longest is served first.

use std::collections::VecDeque;

use super::capacity::Capacity;
use super::pick::Policy;

/// Leave to send one request to one instance. It has to be given back with [`Throttle::release`].
#[must_use = "a grant that is not released keeps its place for ever"]
#[derive(Debug, PartialEq, Eq)]
pub struct Grant<K> {
    /// The instance.
    pub instance: K,
    slot: usize,
}

/// Names a waiting request, to cancel it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Ticket(u64);

/// The answer to a request.
#[derive(Debug)]
pub enum Acquired<K> {
    /// It may go.
    Granted(Grant<K>),
    /// It has been queued; its waiter comes back from a later call.
    Wait(Ticket),
    /// The queue is full: refuse it.
    Full,
}

/// A waiter whose turn it is. If nobody is there any more, release the grant.
#[must_use = "the grant has to reach its waiter or be released"]
#[derive(Debug)]
pub struct Woken<K, W> {
    /// What was handed over when the wait began.
    pub waiter: W,
    /// The leave to go.
    pub grant: Grant<K>,
}

/// The instances of one Revision, what they are doing, and who waits for them.
#[derive(Debug)]
pub struct Throttle<K, W> {
    policy: Policy,
    depth: usize,
    /// By position, which grants remember. Positions are used again once their last request is back.
    slots: Vec<Option<Slot<K>>>,
    /// Positions of the instances that may be picked, sorted by their keys.
    active: Vec<usize>,
    /// How many of `active` have room.
    open: usize,
    last: usize,
    in_flight: usize,
    /// Sorted by ticket, oldest first.
    waiters: VecDeque<(Ticket, W)>,
    /// The last ticket given at the queue's end, and the last given at its front; they grow apart.
    last_ticket: u64,
    first_ticket: u64,
}

/// Where tickets begin: half of them lie before it.
const TICKETS: u64 = 1 << 63;

#[derive(Debug)]
struct Slot<K> {
    key: K,
    capacity: Capacity,
    in_flight: u32,
    state: SlotState,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum SlotState {
    /// May be picked.
    Active,
    /// Gone or going: only gives back what it has in flight.
    Leaving,
}

impl<K> Slot<K> {
    fn has_room(&self) -> bool {
        self.state == SlotState::Active && self.capacity.has_room(self.in_flight)
    }
}

impl<K: Clone + Ord, W> Throttle<K, W> {
    /// A throttle without instances: every request waits, at most `depth` of them.
    pub fn new(container_concurrency: u32, depth: usize) -> Self {
        Self {
            policy: Policy::for_concurrency(container_concurrency),
            depth,
            slots: Vec::new(),
            active: Vec::new(),
            open: 0,
            last: usize::MAX - 1,
            in_flight: 0,
            waiters: VecDeque::new(),
            last_ticket: TICKETS,
            first_ticket: TICKETS,
        }
    }

    /// Asks for leave to send a request. `waiter` is called only when it has to wait.
    pub fn acquire(&mut self, random: u64, waiter: impl FnOnce() -> W) -> Acquired<K> {
        if let Some(grant) = self.grant(random) {
            return Acquired::Granted(grant);
        }
        if self.waiters.len() >= self.depth {
            return Acquired::Full;
        }
        self.last_ticket += 1;
        let ticket = Ticket(self.last_ticket);
        self.waiters.push_back((ticket, waiter()));
        Acquired::Wait(ticket)
    }

    /// Leave to send a request to the instance with room that scores highest, given its requests in flight; `None` when
    /// none with room has a score. Nobody is passed over by this: while anybody waits, no instance has room.
    pub fn acquire_best(&mut self, score: impl Fn(&K, u32) -> Option<u64>) -> Option<Grant<K>> {
        let open = self.active.iter().copied().filter(|&at| self.slot(at).has_room());
        let scored = open.filter_map(|at| {
            let slot = self.slot(at);
            Some((score(&slot.key, slot.in_flight)?, at))
        });
        let (_, at) = scored.max_by_key(|(score, _)| *score)?;
        Some(self.take(at))
    }

    /// The same for a request that had leave to go to an instance which did not take it: it waits before all others,
    /// for its turn had come, and is not refused for want of room.
    pub fn acquire_again(&mut self, random: u64, waiter: impl FnOnce() -> W) -> Acquired<K> {
        if let Some(grant) = self.grant(random) {
            return Acquired::Granted(grant);
        }
        self.first_ticket -= 1;
        let ticket = Ticket(self.first_ticket);
        self.waiters.push_front((ticket, waiter()));
        Acquired::Wait(ticket)
    }

    /// Ends all waits, as when there will never be an instance again.
    #[must_use = "those who wait are to be told"]
    pub fn dismiss(&mut self) -> Vec<W> {
        self.waiters.drain(..).map(|(_, waiter)| waiter).collect()
    }

    /// Gives a grant back. Returns the waiter whose turn it is, if any.
    #[must_use = "a woken waiter holds a grant"]
    pub fn release(&mut self, grant: Grant<K>, random: u64) -> Option<Woken<K, W>> {
        let Grant { slot: at, .. } = grant;
        let slot = self.slots[at].as_mut().expect("a slot stays while a grant is out");
        let had_room = slot.has_room();
        slot.in_flight -= 1;
        self.in_flight -= 1;
        if slot.has_room() && !had_room {
            self.open += 1;
        }
        if slot.state == SlotState::Leaving && slot.in_flight == 0 {
            self.slots[at] = None;
        }
        self.wake(random)
    }

    /// Ends a wait, as when the client went away or a deadline passed. `None` when it is no longer waiting, which
    /// means its waiter has been woken.
    pub fn cancel(&mut self, ticket: Ticket) -> Option<W> {
        let at = self.waiters.binary_search_by_key(&ticket, |(ticket, _)| *ticket).ok()?;
        self.waiters.remove(at).map(|(_, waiter)| waiter)
    }

    /// Says which instances there are now and what each takes. Those left out get no more requests; what they have
    /// in flight stays counted until released. Returns the waiters that can go, in order; each should be
    /// told before the next call.
    pub fn set_instances(
        &mut self,
        instances: impl IntoIterator<Item = (K, Capacity)>,
        mut random: impl FnMut() -> u64,
    ) -> Vec<Woken<K, W>> {
        let mut wanted: Vec<(K, Capacity)> = instances.into_iter().collect();
        wanted.sort_by(|a, b| a.0.cmp(&b.0));
        wanted.dedup_by(|a, b| a.0 == b.0);

        for slot in self.slots.iter_mut().flatten() {
            slot.state = SlotState::Leaving;
        }
        let mut active = Vec::with_capacity(wanted.len());
        for (key, capacity) in wanted {
            let at = match self.position(&key) {
                Some(at) => at,
                None => self.place(key),
            };
            let slot = self.slots[at].as_mut().expect("the slot was found or made");
            slot.state = SlotState::Active;
            slot.capacity = capacity;
            active.push(at);
        }
        for slot in &mut self.slots {
            if slot.as_ref().is_some_and(|s| s.state == SlotState::Leaving && s.in_flight == 0) {
                *slot = None;
            }
        }
        self.active = active;
        self.open = self.active.iter().filter(|&&at| self.slot(at).has_room()).count();
        std::iter::from_fn(|| self.wake(random())).collect()
    }

    /// Takes one instance out until [`Self::set_instances`] names it again; for one that refuses connections.
    pub fn withdraw(&mut self, key: &K) {
        let Some(at) = self.position(key) else { return };
        let slot = self.slots[at].as_mut().expect("a position has a slot");
        if slot.has_room() {
            self.open -= 1;
        }
        slot.state = SlotState::Leaving;
        if slot.in_flight == 0 {
            self.slots[at] = None;
        }
        self.active.retain(|&other| other != at);
    }

    /// Changes the number of requests that may wait. Those beyond it stay.
    pub fn set_depth(&mut self, depth: usize) {
        self.depth = depth;
    }

    /// Requests sent and not yet given back.
    pub fn in_flight(&self) -> usize {
        self.in_flight
    }

    /// Requests that wait.
    pub fn waiting(&self) -> usize {
        self.waiters.len()
    }

    /// What all instances take together.
    pub fn capacity(&self) -> Capacity {
        let all = self.active.iter().map(|&at| self.slot(at).capacity);
        all.fold(Capacity::Of(0), Capacity::plus)
    }

    /// Whether a request would be granted now.
    pub fn has_room(&self) -> bool {
        self.open > 0
    }

    /// The instances that may be picked, sorted, each with its requests in flight.
    pub fn instances(&self) -> impl Iterator<Item = (&K, u32)> {
        self.active.iter().map(|&at| self.slot(at)).map(|slot| (&slot.key, slot.in_flight))
    }

    /// The instances that get no more requests but still have some in flight.
    pub fn leaving(&self) -> impl Iterator<Item = (&K, u32)> {
        let slots = self.slots.iter().flatten().filter(|slot| slot.state == SlotState::Leaving);
        slots.map(|slot| (&slot.key, slot.in_flight))
    }

    /// Requests in flight on one instance, leaving or not.
    pub fn in_flight_of(&self, key: &K) -> u32 {
        self.position(key).map_or(0, |at| self.slot(at).in_flight)
    }

    fn wake(&mut self, random: u64) -> Option<Woken<K, W>> {
        if self.waiters.is_empty() {
            return None;
        }
        let grant = self.grant(random)?;
        let (_, waiter) = self.waiters.pop_front().expect("somebody waits");
        Some(Woken { waiter, grant })
    }

    fn grant(&mut self, random: u64) -> Option<Grant<K>> {
        if self.open == 0 {
            return None;
        }
        let busy = |at: usize| {
            let slot = self.slot(self.active[at]);
            slot.has_room().then_some(slot.in_flight)
        };
        let picked = self.policy.pick(self.active.len(), self.last, random, busy)?;
        self.last = picked;
        Some(self.take(self.active[picked]))
    }

    /// Takes a place at the instance in this position, which has room.
    fn take(&mut self, at: usize) -> Grant<K> {
        let slot = self.slots[at].as_mut().expect("an active position has a slot");
        slot.in_flight += 1;
        self.in_flight += 1;
        if !slot.has_room() {
            self.open -= 1;
        }
        Grant { instance: slot.key.clone(), slot: at }
    }

    fn slot(&self, at: usize) -> &Slot<K> {
        self.slots[at].as_ref().expect("an active position has a slot")
    }

    fn position(&self, key: &K) -> Option<usize> {
        self.slots.iter().position(|slot| slot.as_ref().is_some_and(|slot| slot.key == *key))
    }

    fn place(&mut self, key: K) -> usize {
        let new = Slot { key, capacity: Capacity::Of(0), in_flight: 0, state: SlotState::Leaving };
        match self.slots.iter().position(Option::is_none) {
            Some(at) => {
                self.slots[at] = Some(new);
                at
            }
            None => {
                self.slots.push(Some(new));
                self.slots.len() - 1
            }
        }
    }
}
