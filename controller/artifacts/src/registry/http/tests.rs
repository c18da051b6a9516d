use std::collections::HashMap;
use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::{LazyLock, Mutex};

use futures::future::BoxFuture;

use super::*;

#[test]
fn retry_after_is_seconds_or_a_date_and_nothing_else() {
    let now = httpdate::parse_http_date("Wed, 21 Oct 2015 07:28:00 GMT").expect("a date");
    let seconds = |value| retry_after(value, now).map(|after| after.as_secs());
    assert_eq!(seconds("120"), Some(120));
    assert_eq!(seconds(" 0 "), Some(0));
    assert_eq!(seconds("Wed, 21 Oct 2015 07:30:00 GMT"), Some(120));
    assert_eq!(seconds("Wed, 21 Oct 2015 07:00:00 GMT"), Some(0), "in the past");
    assert_eq!(seconds("99999999999999999999999"), Some(u64::MAX));
    for none in ["", "-5", "soon", "1.5"] {
        assert_eq!(seconds(none), None, "{none}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_trickle_is_no_transfer() {
    let mut pace = Pace::new(Duration::from_secs(60));
    for _ in 0..5 {
        tokio::time::advance(Duration::from_secs(10)).await;
        pace.came(1, "x").expect("the window is not over");
    }
    tokio::time::advance(Duration::from_secs(10)).await;
    assert_eq!(
        pace.came(1, "x").expect_err("six bytes a minute").reason,
        Reason::Stalled
    );
    let mut pace = Pace::new(Duration::from_secs(60));
    for _ in 0..20 {
        tokio::time::advance(Duration::from_secs(10)).await;
        pace.came(10_000, "x").expect("slow, but it comes");
    }
}

#[tokio::test(start_paused = true)]
async fn a_window_goes_on_over_connections_and_a_new_one_follows_it() {
    let mut pace = Pace::new(Duration::from_secs(60));
    assert_eq!(pace.least(), 60 * 256);
    tokio::time::advance(Duration::from_secs(59)).await;
    pace.came(100, "x").expect("the window is not over");
    tokio::time::advance(Duration::from_secs(1)).await;
    let error = pace.came(0, "x").expect_err("too few");
    assert_eq!(error.message, "x: only 100 bytes came in 60 s (--stall-timeout)");
    tokio::time::advance(Duration::from_secs(59)).await;
    pace.came(0, "x").expect("the next window is not over");
    pace.came(pace.least(), "x").expect("enough");
    tokio::time::advance(Duration::from_secs(1)).await;
    pace.came(0, "x").expect("enough");
}

/// What names mean now; each test has its own.
static NAMES: LazyLock<Mutex<HashMap<String, Vec<IpAddr>>>> = LazyLock::new(Mutex::default);

fn means(name: &str, addresses: &[&str]) {
    let addresses = addresses.iter().map(|ip| ip.parse().expect("an address")).collect();
    NAMES.lock().expect("no panic").insert(name.to_owned(), addresses);
}

fn lookup(name: String) -> BoxFuture<'static, io::Result<Vec<SocketAddr>>> {
    let found = NAMES.lock().expect("no panic").get(&name).cloned();
    let found = found.ok_or_else(|| io::Error::other("no such name"));
    Box::pin(async move { Ok(found?.into_iter().map(|ip| SocketAddr::new(ip, 0)).collect()) })
}

/// Answers each connection with a word.
fn says(listener: TcpListener, word: &'static str) {
    std::thread::spawn(move || {
        while let Ok((mut stream, _)) = listener.accept() {
            let _ = stream.read(&mut [0; 4096]);
            let head = "HTTP/1.1 200 OK\r\nconnection: close\r\n";
            let _ = write!(stream, "{head}content-length: {}\r\n\r\n{word}", word.len());
        }
    });
}

async fn ask(http: &Http, name: &str, port: u16) -> Result<String, PullError> {
    let url = Url::parse(&format!("http://{name}:{port}/")).expect("a URL");
    let route = Route {
        url: &url,
        named: &url,
        plain: true,
    };
    let response = http.get(route, &HeaderMap::new(), None, name).await?;
    let bytes = http.bounded(response, 100, name).await?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

fn http() -> Http {
    Http::with_lookup(&Limits::default(), Registries::default(), lookup).expect("a client")
}

#[tokio::test]
async fn d19_a_name_that_is_not_found_is_told_at_once_and_found_once_it_is_there() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("binds");
    let port = listener.local_addr().expect("bound").port();
    says(listener, "here");
    let http = http();
    let error = ask(&http, "late.example", port).await.expect_err("no such name");
    assert_eq!(error.reason, Reason::Unavailable);
    assert!(
        !error.is_terminal() && error.message.contains("no such name"),
        "{error}"
    );
    means("late.example", &["127.0.0.1"]);
    assert_eq!(ask(&http, "late.example", port).await.expect("there"), "here");
}

#[tokio::test]
async fn d19_a_name_that_moves_to_another_address_is_followed_but_not_to_a_metadata_service() {
    let old = TcpListener::bind("127.0.0.1:0").expect("binds");
    let port = old.local_addr().expect("bound").port();
    let Ok(new) = TcpListener::bind(("127.0.0.2", port)) else {
        println!("skipped: 127.0.0.2:{port} is taken");
        return;
    };
    says(old, "old");
    says(new, "new");
    let http = http();
    means("moves.example", &["127.0.0.1"]);
    assert_eq!(ask(&http, "moves.example", port).await.expect("answers"), "old");
    means("moves.example", &["127.0.0.2"]);
    assert_eq!(ask(&http, "moves.example", port).await.expect("answers"), "new");
    means("moves.example", &["169.254.169.254"]);
    let error = ask(&http, "moves.example", port).await.expect_err("refused");
    assert!(error.message.contains("never asked"), "{error}");
}

#[tokio::test]
async fn d19_an_address_that_never_answers_does_not_keep_from_the_others() {
    let there = TcpListener::bind("127.0.0.1:0").expect("binds");
    let port = there.local_addr().expect("bound").port();
    says(there, "by the other way");
    let Some(_hole) = BlackHole::at(SocketAddr::new(Ipv6Addr::LOCALHOST.into(), port)) else {
        println!("skipped: no IPv6 on this machine, or [::1]:{port} is taken");
        return;
    };
    means("hole.example", &["::1", "127.0.0.1"]);
    let begun = Instant::now();
    let answer = ask(&http(), "hole.example", port).await.expect("answers");
    assert_eq!(answer, "by the other way");
    assert!(
        begun.elapsed() < Duration::from_secs(15),
        "before the connection attempt times out"
    );
}

/// An address that takes connection attempts and never answers them: its queue is full.
struct BlackHole {
    _listener: rustix::fd::OwnedFd,
    _queued: Vec<TcpStream>,
}

impl BlackHole {
    fn at(address: SocketAddr) -> Option<BlackHole> {
        use rustix::net::{AddressFamily, SocketType, bind, listen, socket};
        let listener = socket(AddressFamily::INET6, SocketType::STREAM, None).ok()?;
        bind(&listener, &address).ok()?;
        listen(&listener, 0).ok()?;
        let mut queued = Vec::new();
        while let Ok(stream) = TcpStream::connect_timeout(&address, Duration::from_millis(200)) {
            queued.push(stream);
        }
        Some(BlackHole {
            _listener: listener,
            _queued: queued,
        })
    }
}
