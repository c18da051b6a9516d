//! A TCP proxy that can hold back answers: it makes "in the middle of a pull" a state that lasts.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio_util::task::AbortOnDropHandle;

/// Answers longer than this are held back: manifests pass, layers do not.
const PASSES: usize = 16 << 10;

/// A proxy to one server.
pub struct Gate {
    address: String,
    open: Arc<watch::Sender<bool>>,
    held: watch::Receiver<usize>,
    _task: AbortOnDropHandle<()>,
}

impl Gate {
    /// Starts one, shut, to `server` ("127.0.0.1:PORT").
    pub async fn shut(server: String) -> Result<Gate> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?.to_string();
        let (open, state) = watch::channel(false);
        let (holding, held) = watch::channel(0);
        let (open, holding) = (Arc::new(open), Arc::new(holding));
        let task = tokio::spawn(async move {
            // They end with the proxy.
            let mut connections = tokio::task::JoinSet::new();
            while let Ok((client, _)) = listener.accept().await {
                if let Ok(upstream) = TcpStream::connect(&server).await {
                    connections.spawn(carry(client, upstream, state.clone(), holding.clone()));
                }
            }
        });
        Ok(Gate {
            address,
            open,
            held,
            _task: AbortOnDropHandle::new(task),
        })
    }

    /// "127.0.0.1:PORT", to be used instead of the server's.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Lets everything pass from now on.
    pub fn open(&self) {
        self.open.send_replace(true);
    }

    /// Waits until an answer is held back: somebody is in the middle of a transfer.
    pub async fn holds(&self, limit: Duration) -> Result<()> {
        self.count(|held| held > 0, "a transfer is under way", limit).await
    }

    /// Waits until nothing is held back any more: whoever waited has gone away.
    pub async fn is_idle(&self, limit: Duration) -> Result<()> {
        self.count(|held| held == 0, "nobody transfers anything", limit).await
    }

    async fn count(&self, wanted: impl Fn(usize) -> bool, what: &str, limit: Duration) -> Result<()> {
        let mut held = self.held.clone();
        let last = *held.borrow();
        tokio::time::timeout(limit, held.wait_for(|held| wanted(*held)))
            .await
            .with_context(|| format!("not within {limit:?}: {what}; seen before: {last} transfers held back"))?
            .context("the gate has ended")?;
        Ok(())
    }
}

/// Counts a connection as held back as long as it lives.
struct Held(Arc<watch::Sender<usize>>);

impl Held {
    fn new(count: Arc<watch::Sender<usize>>) -> Held {
        count.send_modify(|n| *n += 1);
        Held(count)
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.0.send_modify(|n| *n -= 1);
    }
}

async fn carry(
    client: TcpStream,
    server: TcpStream,
    mut open: watch::Receiver<bool>,
    count: Arc<watch::Sender<usize>>,
) {
    let (mut from_client, mut to_client) = client.into_split();
    let (mut from_server, mut to_server) = server.into_split();
    let requests = async move {
        // The end of either side ends the other, so errors need no word.
        let _ = tokio::io::copy(&mut from_client, &mut to_server).await;
    };
    let answers = async move {
        let mut buffer = vec![0; PASSES];
        let mut passed = 0;
        while let Ok(n @ 1..) = from_server.read(&mut buffer).await {
            passed += n;
            if passed > PASSES && !*open.borrow() {
                let _held = Held::new(count.clone());
                if open.wait_for(|open| *open).await.is_err() {
                    return;
                }
            }
            if to_client.write_all(&buffer[..n]).await.is_err() {
                return;
            }
        }
    };
    tokio::select! {
        () = requests => {}
        () = answers => {}
    }
}
