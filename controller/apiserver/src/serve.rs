//! The API on a socket: TLS, and a bearer token for everything but health and version.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::State;
use axum::middleware::{self, Next};
use http::header::AUTHORIZATION;
use http::{Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_rustls::TlsAcceptor;

use crate::credentials::Credentials;
use crate::http::accept::Format;
use crate::http::answer::respond;
use crate::http::path::{Target, parse};
use crate::status::Failure;
use crate::{Inner, OpenError};

/// Connections at once; more wait in the socket's backlog.
const CONNECTIONS: usize = 256;
/// A client that does not finish its handshake or its headers in this time is dropped.
const PATIENCE: Duration = Duration::from_secs(10);
/// Time for requests that are being answered when the server stops.
const GRACE: Duration = Duration::from_secs(5);

/// Binds and serves in the background until the server shuts down.
pub(crate) async fn serve(
    server: &Arc<Inner>,
    credentials: &Arc<Credentials>,
    listen: SocketAddr,
) -> Result<SocketAddr, OpenError> {
    let failed = |source| OpenError::Io {
        what: format!("listen on {listen}"),
        source,
    };
    let listener = TcpListener::bind(listen).await.map_err(failed)?;
    let address = listener.local_addr().map_err(failed)?;
    let tls = TlsAcceptor::from(credentials.tls(address)?);
    let router =
        crate::http::router(server.clone()).layer(middleware::from_fn_with_state(credentials.clone(), authenticate));
    let tasks = server.tasks.clone();
    let (server, slots) = (server.clone(), Arc::new(Semaphore::new(CONNECTIONS)));
    server.tasks.clone().spawn(async move {
        loop {
            let Ok(slot) = slots.clone().acquire_owned().await else {
                return;
            };
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                () = server.shutdown.cancelled() => return,
            };
            let stream = match accepted {
                Ok((stream, _)) => stream,
                Err(error) => {
                    // Out of file descriptors, most likely: it passes, and a tight loop would not help.
                    tracing::warn!(%error, "the API cannot take a connection");
                    tokio::time::sleep(Duration::from_millis(200)).await;
                    continue;
                }
            };
            let (server, tls, router) = (server.clone(), tls.clone(), router.clone());
            tasks.spawn(async move {
                connection(server, stream, tls, router).await;
                drop(slot);
            });
        }
    });
    Ok(address)
}

async fn connection(server: Arc<Inner>, stream: TcpStream, tls: TlsAcceptor, router: axum::Router) {
    let _ = stream.set_nodelay(true);
    let Ok(Ok(stream)) = tokio::time::timeout(PATIENCE, tls.accept(stream)).await else {
        return;
    };
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(PATIENCE);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(128)
        .keep_alive_interval(Some(Duration::from_secs(60)));
    let service = TowerToHyperService::new(router);
    let connection = builder.serve_connection(TokioIo::new(stream), service);
    tokio::pin!(connection);
    tokio::select! {
        _ = connection.as_mut() => return,
        () = server.shutdown.cancelled() => connection.as_mut().graceful_shutdown(),
    }
    let _ = tokio::time::timeout(GRACE, connection).await;
}

async fn authenticate(
    State(credentials): State<Arc<Credentials>>,
    request: Request<Body>,
    next: Next,
) -> Response<Body> {
    let open = matches!(parse(request.uri().path()), Target::Health | Target::Version);
    let token = request.headers().get(AUTHORIZATION).and_then(|v| v.to_str().ok());
    let token = token.and_then(|v| v.strip_prefix("Bearer ")).unwrap_or_default();
    if open || credentials.is_token(token.trim()) {
        next.run(request).await
    } else {
        respond(Err(Failure::unauthorized()), Format::Json)
    }
}
