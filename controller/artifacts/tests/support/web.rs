//! A scripted HTTP server on real sockets: it can cut, reset and stall where a test says so.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

/// A request as it came.
#[derive(Clone, Debug)]
pub struct Request {
    pub method: String,
    pub path: String,
    pub headers: Vec<(String, String)>,
    pub body: String,
}

impl Request {
    pub fn header(&self, name: &str) -> Option<&str> {
        let found = self.headers.iter().find(|(known, _)| known == name);
        found.map(|(_, value)| value.as_str())
    }

    /// Where a Range header wants to begin.
    pub fn from(&self) -> Option<usize> {
        self.header("range")?
            .strip_prefix("bytes=")?
            .strip_suffix('-')?
            .parse()
            .ok()
    }
}

/// What goes wrong with an answer, after so many bytes of its body.
#[derive(Clone, Copy, Debug)]
pub enum Fault {
    None,
    /// The connection is closed in order.
    Cut(usize),
    /// The connection is reset.
    Reset(usize),
    /// Nothing more comes until the server goes.
    Stall(usize),
    /// Not even the status comes.
    Silence,
    /// Head and body come byte by byte, with a pause before each.
    Trickle(Duration),
    /// The body is sent again and again, in chunks, until the other end has enough.
    Endless,
}

/// An answer.
#[derive(Clone, Debug)]
pub struct Reply {
    status: u16,
    pub headers: Vec<(String, String)>,
    body: Vec<u8>,
    fault: Fault,
}

impl Reply {
    pub fn new(status: u16) -> Reply {
        Reply {
            status,
            headers: Vec::new(),
            body: Vec::new(),
            fault: Fault::None,
        }
    }

    pub fn header(mut self, name: &str, value: &str) -> Reply {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }

    pub fn body(mut self, body: &[u8]) -> Reply {
        self.body = body.to_vec();
        self
    }

    pub fn fault(mut self, fault: Fault) -> Reply {
        self.fault = fault;
        self
    }

    /// Whether it has this status.
    pub fn is(&self, status: u16) -> bool {
        self.status == status
    }

    /// A body as a good server gives it, with ranges.
    pub fn ranged(request: &Request, body: &[u8]) -> Reply {
        match request.from() {
            None => Reply::new(200).body(body),
            Some(from) if from >= body.len() => Reply::new(416),
            Some(from) => {
                let range = format!("bytes {from}-{}/{}", body.len() - 1, body.len());
                Reply::new(206).header("content-range", &range).body(&body[from..])
            }
        }
    }

    pub fn redirect(to: &str) -> Reply {
        Reply::new(307).header("location", to)
    }

    fn send(self, to: &mut Stream, gone: &Gone) -> std::io::Result<()> {
        if let Fault::Silence = self.fault {
            gone.wait();
            return Ok(());
        }
        let mut head = format!("HTTP/1.1 {} Scripted\r\nconnection: close\r\n", self.status);
        if let Fault::Endless = self.fault {
            head.push_str("transfer-encoding: chunked\r\n");
        } else if !self
            .headers
            .iter()
            .any(|(name, _)| name == "content-length" || name == "transfer-encoding")
        {
            head.push_str(&format!("content-length: {}\r\n", self.body.len()));
        }
        for (name, value) in &self.headers {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        if let Fault::Trickle(pause) = self.fault {
            for byte in format!("{head}\r\n").as_bytes().iter().chain(&self.body) {
                to.write_all(&[*byte])?;
                if gone.within(pause) {
                    break;
                }
            }
            return Ok(());
        }
        to.write_all(format!("{head}\r\n").as_bytes())?;
        match self.fault {
            Fault::None | Fault::Silence | Fault::Trickle(_) => to.write_all(&self.body)?,
            Fault::Endless => loop {
                to.write_all(format!("{:x}\r\n", self.body.len()).as_bytes())?;
                to.write_all(&self.body)?;
                to.write_all(b"\r\n")?;
            },
            Fault::Cut(after) => to.write_all(&self.body[..after])?,
            Fault::Stall(after) => {
                to.write_all(&self.body[..after])?;
                gone.wait();
            }
            Fault::Reset(after) => {
                to.write_all(&self.body[..after])?;
                let linger = Some(std::time::Duration::ZERO);
                return rustix::net::sockopt::set_socket_linger(to.tcp(), linger).map_err(Into::into);
            }
        }
        to.close()
    }
}

/// A connection.
enum Stream {
    Plain(TcpStream),
    Tls(Box<rustls::StreamOwned<rustls::ServerConnection, TcpStream>>),
}

impl Stream {
    fn tcp(&self) -> &TcpStream {
        match self {
            Stream::Plain(tcp) => tcp,
            Stream::Tls(tls) => &tls.sock,
        }
    }

    fn close(&mut self) -> std::io::Result<()> {
        if let Stream::Tls(tls) = self {
            tls.conn.send_close_notify();
            tls.flush()?;
        }
        self.tcp().shutdown(Shutdown::Write)
    }
}

impl Read for Stream {
    fn read(&mut self, buf: &mut [u8]) -> std::io::Result<usize> {
        match self {
            Stream::Plain(tcp) => tcp.read(buf),
            Stream::Tls(tls) => tls.read(buf),
        }
    }
}

impl Write for Stream {
    fn write(&mut self, buf: &[u8]) -> std::io::Result<usize> {
        match self {
            Stream::Plain(tcp) => tcp.write(buf),
            Stream::Tls(tls) => tls.write(buf),
        }
    }

    fn flush(&mut self) -> std::io::Result<()> {
        match self {
            Stream::Plain(tcp) => tcp.flush(),
            Stream::Tls(tls) => tls.flush(),
        }
    }
}

#[derive(Default)]
struct Gone(Mutex<bool>, Condvar);

impl Gone {
    fn wait(&self) {
        let mut gone = self.0.lock().unwrap();
        while !*gone {
            gone = self.1.wait(gone).unwrap();
        }
    }

    /// Whether the server goes within a time.
    fn within(&self, time: Duration) -> bool {
        let gone = self.0.lock().unwrap();
        *self.1.wait_timeout_while(gone, time, |gone| !*gone).unwrap().0
    }
}

/// A certificate and its key, for a server behind TLS.
pub type Identity = Arc<rustls::ServerConfig>;

/// The server; it goes when it is dropped.
pub struct Web {
    pub address: String,
    log: Arc<Mutex<Vec<Request>>>,
    answered: Arc<Mutex<Vec<(Request, u16)>>>,
    gone: Arc<Gone>,
    accepting: Option<JoinHandle<()>>,
}

impl Web {
    pub fn start(answer: impl Fn(&Request) -> Reply + Send + Sync + 'static) -> Web {
        Web::open(None, answer)
    }

    /// The same behind TLS. The identity may be exchanged while it runs.
    pub fn secure(identity: Arc<Mutex<Identity>>, answer: impl Fn(&Request) -> Reply + Send + Sync + 'static) -> Web {
        Web::open(Some(identity), answer)
    }

    fn open(identity: Option<Arc<Mutex<Identity>>>, answer: impl Fn(&Request) -> Reply + Send + Sync + 'static) -> Web {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let log = Arc::new(Mutex::new(Vec::new()));
        let answered = Arc::new(Mutex::new(Vec::new()));
        let gone = Arc::new(Gone::default());
        let (answer, seen, ending) = (Arc::new(answer), log.clone(), gone.clone());
        let said = answered.clone();
        let accepting = std::thread::spawn(move || {
            let mut serving = Vec::new();
            for stream in listener.incoming() {
                if *ending.0.lock().unwrap() {
                    break;
                }
                let Ok(stream) = stream else { continue };
                let (answer, seen, ending) = (answer.clone(), seen.clone(), ending.clone());
                let said = said.clone();
                let identity = identity.as_ref().map(|identity| identity.lock().unwrap().clone());
                serving.push(std::thread::spawn(move || {
                    let mut stream = match identity {
                        None => Stream::Plain(stream),
                        Some(identity) => {
                            let tls = rustls::ServerConnection::new(identity).unwrap();
                            Stream::Tls(Box::new(rustls::StreamOwned::new(tls, stream)))
                        }
                    };
                    if let Some(request) = read(&mut stream) {
                        seen.lock().unwrap().push(request.clone());
                        let mut reply = answer(&request);
                        said.lock().unwrap().push((request.clone(), reply.status));
                        if request.method == "HEAD" {
                            let length = reply.body.len().to_string();
                            reply = reply.header("content-length", &length).body(b"");
                        }
                        let _ = reply.send(&mut stream, &ending);
                    }
                }));
            }
            for thread in serving {
                thread.join().unwrap();
            }
        });
        Web {
            address,
            log,
            answered,
            gone,
            accepting: Some(accepting),
        }
    }

    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    /// What was asked so far.
    pub fn log(&self) -> Vec<Request> {
        self.log.lock().unwrap().clone()
    }

    /// The answers to what was asked of a path so far, each with its request.
    pub fn answers(&self, part: &str) -> Vec<(Request, u16)> {
        let answered = self.answered.lock().unwrap();
        let of_path = |(request, _): &&(Request, u16)| request.path.contains(part);
        answered.iter().filter(of_path).cloned().collect()
    }

    /// How often a path was asked for.
    pub fn count(&self, part: &str) -> usize {
        self.log().iter().filter(|request| request.path.contains(part)).count()
    }
}

impl Drop for Web {
    fn drop(&mut self) {
        *self.gone.0.lock().unwrap() = true;
        self.gone.1.notify_all();
        let _ = TcpStream::connect(&self.address);
        if let Some(thread) = self.accepting.take() {
            let _ = thread.join();
        }
    }
}

fn read(stream: &mut Stream) -> Option<Request> {
    let mut input = BufReader::new(stream);
    let mut line = || -> Option<String> {
        let mut line = String::new();
        input.read_line(&mut line).ok().filter(|n| *n > 0)?;
        Some(line.trim_end().to_owned())
    };
    let first = line()?;
    let mut words = first.split(' ').map(str::to_owned);
    let (method, path) = (words.next()?, words.next()?);
    let mut headers = Vec::new();
    loop {
        let line = line()?;
        let Some((name, value)) = line.split_once(':') else {
            break;
        };
        headers.push((name.to_ascii_lowercase(), value.trim().to_owned()));
    }
    let length = headers.iter().find(|(name, _)| name == "content-length");
    let length = length.map_or(0, |(_, value)| value.parse().unwrap_or(0));
    let mut body = Vec::new();
    input.take(length).read_to_end(&mut body).ok()?;
    Some(Request {
        method,
        path,
        headers,
        body: String::from_utf8_lossy(&body).into_owned(),
    })
}
