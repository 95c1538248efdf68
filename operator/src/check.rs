//! Asks a page over plain HTTP whether all is well. For `helm test`: the image holds no other program that could.

use std::time::Duration;

use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::{Request, Uri, body::Bytes, client::conn::http1, header::HOST};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

/// For the connection and the answer.
const ANSWER_MAX: Duration = Duration::from_secs(10);
/// More than that is no page of ours.
const BYTES_MAX: usize = 64 << 10;

/// Why it is not, as far as it can be told.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It is not `http://host:port/path`.
    #[error("{0} is not an address of the form http://host:port/path")]
    Address(Uri),
    /// Nobody is there.
    #[error("cannot connect to {0}: {1}")]
    Connect(String, #[source] std::io::Error),
    /// It speaks something else, or says too much.
    #[error("{0} does not answer as a page would: {1}")]
    Answer(String, #[source] Box<dyn std::error::Error + Send + Sync>),
    /// It answers that it is not.
    #[error("{0} answers {1}: {2}")]
    Unwell(String, hyper::StatusCode, String),
    /// It says nothing.
    #[error("{0} does not answer within {ANSWER_MAX:?}")]
    Silent(String),
}

/// What the page says, if it says so with success.
///
/// # Errors
/// See [`Error`].
pub async fn check(page: Uri) -> Result<String, Error> {
    let (Some("http"), Some(authority)) = (page.scheme_str(), page.authority().cloned()) else {
        return Err(Error::Address(page));
    };
    let address = format!("{}:{}", authority.host(), authority.port_u16().unwrap_or(80));
    let asked = ask(&page, &address);
    tokio::time::timeout(ANSWER_MAX, asked).await.unwrap_or_else(|_| Err(Error::Silent(address.clone())))
}

async fn ask(page: &Uri, address: &str) -> Result<String, Error> {
    let strange = |source: Box<dyn std::error::Error + Send + Sync>| Error::Answer(address.to_owned(), source);
    let stream = TcpStream::connect(address).await.map_err(|source| Error::Connect(address.to_owned(), source))?;
    let (mut sender, connection) =
        http1::handshake(TokioIo::new(stream)).await.map_err(|source| strange(source.into()))?;
    tokio::spawn(connection);
    let path = page.path_and_query().map_or("/", |path| path.as_str());
    let request = Request::get(path).header(HOST, address).body(Empty::<Bytes>::new());
    let request = request.map_err(|source| strange(source.into()))?;
    let answer = sender.send_request(request).await.map_err(|source| strange(source.into()))?;
    let status = answer.status();
    let body = Limited::new(answer.into_body(), BYTES_MAX).collect().await.map_err(strange)?.to_bytes();
    let said = String::from_utf8_lossy(&body).trim_end().to_owned();
    if status.is_success() { Ok(said) } else { Err(Error::Unwell(address.to_owned(), status, said)) }
}

#[cfg(test)]
mod tests {
    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _},
        net::TcpListener,
    };

    use super::*;

    /// Answers one question.
    async fn page(answer: &'static str) -> Uri {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut asked = [0; 512];
            let bytes = stream.read(&mut asked).await.unwrap();
            assert!(asked[..bytes].starts_with(b"GET /readyz HTTP/1.1\r\n"));
            stream.write_all(answer.as_bytes()).await.unwrap();
        });
        format!("http://{address}/readyz").parse().unwrap()
    }

    #[tokio::test]
    async fn well_is_who_says_so() {
        let well = page("HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\nready\n").await;
        assert_eq!(check(well).await.unwrap(), "ready");
        let unwell = page("HTTP/1.1 503 Service Unavailable\r\ncontent-length: 3\r\n\r\nno\n").await;
        assert!(matches!(check(unwell).await, Err(Error::Unwell(_, status, said)) if status == 503 && said == "no"));
        let strange = page("what?\r\n\r\n").await;
        assert!(matches!(check(strange).await, Err(Error::Answer(..))));
        assert!(matches!(check("readyz".parse().unwrap()).await, Err(Error::Address(_))));
    }
}
