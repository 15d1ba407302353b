//! The backend that holds writes back must read like a file that took them.

use std::sync::atomic::{AtomicUsize, Ordering};

use super::*;

/// A file in memory that counts what changes it.
#[derive(Debug, Default)]
struct Plain {
    bytes: Mutex<Vec<u8>>,
    changes: AtomicUsize,
}

impl Device for Plain {
    fn len(&self) -> io::Result<u64> {
        Ok(self.bytes.lock().unwrap().len() as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let bytes = self.bytes.lock().unwrap();
        let from = offset as usize;
        let source = bytes.get(from..from + out.len()).ok_or(io::ErrorKind::UnexpectedEof)?;
        out.copy_from_slice(source);
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.changes.fetch_add(1, Ordering::Relaxed);
        let mut bytes = self.bytes.lock().unwrap();
        let end = offset as usize + data.len();
        if bytes.len() < end {
            bytes.resize(end, 0);
        }
        bytes[offset as usize..end].copy_from_slice(data);
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.changes.fetch_add(1, Ordering::Relaxed);
        self.bytes.lock().unwrap().resize(len as usize, 0);
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        self.changes.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }
}

#[test]
fn held_writes_read_as_written_and_are_written_on_acceptance() {
    for seed in 0..200 {
        let mut random = fastrand::Rng::with_seed(seed);
        let start = vec![7; random.usize(0..200)];
        let direct = Plain { bytes: Mutex::new(start.clone()), ..Plain::default() };
        let device = Arc::new(Plain { bytes: Mutex::new(start), ..Plain::default() });
        let backend = Backend::new(device.clone());
        for step in 0..60 {
            if step == 40 {
                assert_eq!(device.changes.load(Ordering::Relaxed), 0, "seed {seed}: not held back");
                backend.accept().unwrap();
            }
            match random.u32(0..10) {
                0..6 => {
                    let data = vec![random.u8(..); random.usize(0..50)];
                    let offset = random.u64(0..250);
                    backend.write(offset, &data).unwrap();
                    direct.write(offset, &data).unwrap();
                }
                6..8 => {
                    let len = random.u64(0..300);
                    backend.set_len(len).unwrap();
                    direct.set_len(len).unwrap();
                }
                _ => {
                    backend.sync_data().unwrap();
                    direct.sync().unwrap();
                }
            }
            let len = direct.len().unwrap();
            assert_eq!(backend.len().unwrap(), len, "seed {seed}, step {step}");
            let from = random.u64(0..=len);
            let mut expected = vec![0; random.u64(0..=len - from) as usize];
            let mut read = vec![9; expected.len()];
            direct.read(from, &mut expected).unwrap();
            backend.read(from, &mut read).unwrap();
            assert_eq!(read, expected, "seed {seed}, step {step}, from {from}");
        }
        assert_eq!(*device.bytes.lock().unwrap(), *direct.bytes.lock().unwrap(), "seed {seed}");
        assert_eq!(
            device.changes.load(Ordering::Relaxed),
            direct.changes.load(Ordering::Relaxed),
            "seed {seed}: something was done twice or not at all"
        );
    }
}

#[test]
fn the_worst_failure_is_remembered() {
    fn full() -> io::Result<()> {
        Err(io::ErrorKind::StorageFull.into())
    }
    fn other() -> io::Result<()> {
        Err(io::ErrorKind::PermissionDenied.into())
    }
    let check = |failures: &[fn(&Backend)], expected| {
        let backend = Backend::new(Arc::new(Plain::default()));
        failures.iter().for_each(|fail| fail(&backend));
        assert_eq!(backend.failure(), expected);
    };
    check(&[], None);
    check(&[|b| drop(b.noting(full()))], Some(Failure::NoSpace));
    check(&[|b| drop(b.noting_sync(full()))], Some(Failure::Other));
    check(&[|b| drop(b.noting(full())), |b| drop(b.noting(other()))], Some(Failure::Other));
    check(&[|b| drop(b.noting(other())), |b| drop(b.noting(full()))], Some(Failure::Other));
}
