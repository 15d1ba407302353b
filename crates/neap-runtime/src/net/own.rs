//! Ports by which a pod reaches itself: what it sends to its own address never leaves it, so what leads others to the port
//! that is meant (`ports`) must be inside, too. Only where it is asked for: whoever has such a table has all that it sends
//! and gets followed by the kernel.

use std::collections::BTreeMap;
use std::io;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use super::nft;
use super::ports::{self, HOOK_OUTPUT, PortMap, Transport};
use crate::sys;

/// The table's name, in each pod.
const TABLE: &str = "neap";

/// What each pod's kernel holds, by the directory of its namespaces. `None`: that is uncertain.
#[derive(Default)]
pub(crate) struct OwnPorts(Mutex<BTreeMap<PathBuf, Option<PortMap>>>);

impl OwnPorts {
    /// Pods of an earlier run, which may have set something.
    pub(crate) fn adopt(&self, pods: impl Iterator<Item = PathBuf>) {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        known.extend(pods.map(|dir| (dir, None)));
    }

    /// Brings all pods that there are to what they should hold.
    pub(crate) fn set(&self, pods: impl Iterator<Item = (PathBuf, Ipv4Addr)>, wanted: &PortMap) -> io::Result<()> {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut result = Ok(());
        let mut next = BTreeMap::new();
        for (dir, ip) in pods {
            let own = wanted.range((ip, Transport::Tcp, 0)..=(ip, Transport::Udp, u16::MAX));
            let own: PortMap = own.map(|(asked, meant)| (*asked, *meant)).collect();
            let before = known.remove(&dir).unwrap_or_else(|| Some(PortMap::new()));
            let done = match before.as_ref() {
                Some(before) if *before == own => Ok(()),
                before => lead(&dir.join("net"), ip, before, &own),
            };
            match done {
                Ok(()) => drop(next.insert(dir, Some(own))),
                // It is just ending.
                Err(error) if error.kind() == io::ErrorKind::NotFound && !dir.join("net").exists() => {}
                // Where such a table can never be, it is not; else it is tried again with the next change.
                Err(error) if own.is_empty() && before.is_none() => {
                    tracing::debug!(%error, "whether a pod is led to itself cannot be found out");
                    next.insert(dir, None);
                }
                Err(error) => {
                    result = Err(io::Error::new(error.kind(), format!("in the pod {ip}: {error}")));
                    next.insert(dir, None);
                }
            }
        }
        *known = next;
        result
    }
}

fn lead(namespace: &Path, ip: Ipv4Addr, known: Option<&PortMap>, wanted: &PortMap) -> io::Result<()> {
    sys::in_network(namespace, || {
        if wanted.is_empty() {
            return nft::remove(TABLE);
        }
        match known {
            Some(known) if !known.is_empty() => ports::update(TABLE, Some(known), wanted),
            _ => {
                nft::renew(TABLE)?;
                ports::install(TABLE, (ip, 32), HOOK_OUTPUT)?;
                ports::update(TABLE, Some(&PortMap::new()), wanted)
            }
        }
    })
}
