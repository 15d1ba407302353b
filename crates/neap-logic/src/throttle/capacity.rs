//! How many requests an instance takes at once (E1.5).

/// A limit on requests in flight.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Capacity {
    /// Any number.
    Unlimited,
    /// At most so many; 0 takes none.
    Of(u32),
}

impl Capacity {
    /// The capacity of one instance with this `containerConcurrency`, where 0 means no limit.
    pub fn of_instance(container_concurrency: u32) -> Self {
        match container_concurrency {
            0 => Self::Unlimited,
            n => Self::Of(n),
        }
    }

    /// Whether another request fits beside those in flight.
    pub fn has_room(self, in_flight: u32) -> bool {
        match self {
            Self::Unlimited => true,
            Self::Of(limit) => in_flight < limit,
        }
    }

    /// Both together.
    pub fn plus(self, other: Self) -> Self {
        match (self, other) {
            (Self::Of(a), Self::Of(b)) => Self::Of(a.saturating_add(b)),
            _ => Self::Unlimited,
        }
    }
}

/// This activator's share when the pods are not reached one by one but through their Service's address, which
/// `activators` activators use: the pods' capacity divided, at least 1 while there is a pod.
pub fn cluster_ip_capacity(container_concurrency: u32, pods: u32, activators: u32) -> Capacity {
    match (container_concurrency, pods) {
        (_, 0) => Capacity::Of(0),
        (0, _) => Capacity::Unlimited,
        (limit, pods) => Capacity::Of((limit.saturating_mul(pods) / activators.max(1)).max(1)),
    }
}
