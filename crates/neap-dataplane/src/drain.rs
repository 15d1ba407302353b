//! Tells who stops instances which of them are busy, and when one is done.

use std::net::{IpAddr, SocketAddr};

use crate::plane::DataPlane;

impl DataPlane {
    /// Resolves when no request is or will be sent to an instance: it is no longer among the ready endpoints, and all
    /// its requests (streams and sockets too) have ended. Without a port, any port of the address counts.
    ///
    /// There is no deadline in it: that is the caller's grace period.
    pub async fn drained(&self, ip: IpAddr, port: Option<u16>) {
        let is = |addr: &SocketAddr| addr.ip() == ip && port.is_none_or(|port| addr.port() == port);
        // A gate that takes the address up later serves another instance.
        for gate in self.gates() {
            gate.drained(&is).await;
        }
    }

    /// Requests an instance has now, for whoever has to choose which one to stop.
    pub fn in_flight(&self, addr: SocketAddr) -> usize {
        self.gates().iter().map(|gate| gate.in_flight_of(&addr) as usize).sum()
    }
}
