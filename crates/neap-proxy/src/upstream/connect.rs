//! TCP connections to upstreams.

use std::time::Duration;

use tokio::net::TcpStream;

use super::Target;
use crate::error::ProxyError;

/// Connects without Nagle's delay: what we write is a whole message more often than not.
pub(super) async fn connect(target: Target, after: Duration) -> Result<TcpStream, ProxyError> {
    let addr = target.addr;
    match tokio::time::timeout(after, TcpStream::connect(addr)).await {
        Err(_elapsed) => Err(ProxyError::ConnectTimeout { target: addr, after }),
        Ok(Err(source)) => Err(ProxyError::Connect { target: addr, source }),
        Ok(Ok(stream)) => match stream.set_nodelay(true) {
            Ok(()) => Ok(stream),
            Err(source) => Err(ProxyError::Connect { target: addr, source }),
        },
    }
}
