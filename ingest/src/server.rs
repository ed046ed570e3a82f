//! The HTTP server: its timeouts, and its graceful stop.

use std::{any::Any, io, sync::Arc, time::Duration};

use actix_web::{App as Site, HttpServer, dev::ServerHandle, middleware::from_fn, web::Data};
use people::live::hub::Hub;
use runtime::config::HttpConfig;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;
use web::{
    gate::gate,
    observe::{Traffic, observe},
};

use crate::{routes, state::AppState};

/// A client that has not sent its headers by then is disconnected.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);
/// Longer than the usual 60 s of load balancers, so that they close idle connections before we do.
const KEEP_ALIVE: Duration = Duration::from_secs(75);
/// A client that does not read the end of its answer is disconnected.
const DISCONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// Longer than a short network outage.
#[cfg(target_os = "linux")]
const STALLED_TIMEOUT: Duration = Duration::from_secs(30);
/// Every request except a bulk is answered within two seconds. A stopping process waits this long for the rest.
pub const LEAVE_TIMEOUT: Duration = Duration::from_secs(5);
/// If no request was in progress for so long, the last answers have been written.
const QUIET: Duration = Duration::from_millis(150);
const QUIET_STEP: Duration = Duration::from_millis(10);

/// Serves until `stop`, then finishes requests in progress and returns.
pub async fn serve(config: &HttpConfig, state: AppState, stop: CancellationToken) -> io::Result<()> {
    let traffic = Data::new(Traffic::default());
    let (leaving, hub) = (traffic.clone(), Arc::clone(&state.live.hub));
    let site = move || {
        Site::new()
            .app_data(traffic.clone())
            .configure(|site| state.register(site))
            .configure(routes::configure)
            .wrap(from_fn(gate))
            .wrap(from_fn(observe))
    };
    let server = HttpServer::new(site)
        .workers(config.workers)
        .client_request_timeout(HEAD_TIMEOUT)
        .client_disconnect_timeout(DISCONNECT_TIMEOUT)
        .keep_alive(KEEP_ALIVE)
        .on_connect(|connection, _| prepare(connection))
        .disable_signals()
        .bind((config.host.as_str(), config.port))?
        .run();
    let handle = server.handle();
    let leave = async {
        stop.cancelled().await;
        leave(&handle, &leaving, &hub).await;
    };
    tokio::pin!(server);
    tokio::select! {
        ended = &mut server => return ended,
        () = leave => {}
    }
    server.await
}

/// Sets a timeout after which the system closes a connection whose peer acknowledges nothing, even if our buffers are not
/// empty.
fn prepare(connection: &dyn Any) {
    #[cfg(target_os = "linux")]
    if let Some(stream) = connection.downcast_ref::<actix_web::rt::net::TcpStream>() {
        // If this fails, such a connection is closed later.
        let _ = socket2::SockRef::from(stream).set_tcp_user_timeout(Some(STALLED_TIMEOUT));
    }
    #[cfg(not(target_os = "linux"))]
    let _ = connection;
}

/// Stops accepting connections, finishes requests in progress and stops the server. The server's own graceful stop would
/// wait for idle connections to time out. Instead each answer closes its connection, and idle connections are dropped. Open
/// sockets observe the stop themselves and end within the same time.
async fn leave(handle: &ServerHandle, traffic: &Traffic, hub: &Hub) {
    handle.pause().await;
    traffic.stop();
    let deadline = Instant::now() + LEAVE_TIMEOUT;
    let mut quiet_since = Instant::now();
    while quiet_since.elapsed() < QUIET && Instant::now() < deadline {
        sleep(QUIET_STEP).await;
        if traffic.under_way() > 0 || hub.open() > 0 {
            quiet_since = Instant::now();
        }
    }
    // Not awaited: the stop is complete when the server future ends, and the caller awaits that.
    drop(handle.stop(false));
}
