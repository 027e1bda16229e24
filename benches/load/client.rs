//! A thin keep-alive HTTP client, so that the generator costs as little as it can.

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

pub(crate) struct Client {
    stream: TcpStream,
    buffer: Vec<u8>,
    host: String,
    headers: String,
}

impl Client {
    pub(crate) async fn connect(address: &str, app: &str, token: &str) -> Self {
        let stream = TcpStream::connect(address).await.expect("a connection");
        stream.set_nodelay(true).expect("no delay");
        let headers = format!("nxx-app-id: {app}\r\nauthorization: Bearer {token}\r\n");
        Self { stream, buffer: Vec::with_capacity(4096), host: address.to_owned(), headers }
    }

    /// Sends a request and reads the whole answer: its status and body.
    pub(crate) async fn call(&mut self, method: &str, path: &str, body: &str) -> (u16, String) {
        let request = format!(
            "{method} {path} HTTP/1.1\r\nhost: {}\r\n{}content-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
            self.host,
            self.headers,
            body.len()
        );
        self.stream.write_all(request.as_bytes()).await.expect("sent");
        self.buffer.clear();
        loop {
            let n_read = self.stream.read_buf(&mut self.buffer).await.expect("an answer");
            assert!(n_read > 0, "the server closed the connection");
            if let Some(answer) = whole(&self.buffer) {
                return answer;
            }
        }
    }
}

fn whole(buffer: &[u8]) -> Option<(u16, String)> {
    let end = buffer.windows(4).position(|four| four == b"\r\n\r\n")?;
    let head = std::str::from_utf8(&buffer[..end]).ok()?;
    let status = head.get(9..12)?.parse().ok()?;
    let length = head
        .lines()
        .find_map(|line| line.split_once(':').filter(|(name, _)| name.eq_ignore_ascii_case("content-length")))
        .and_then(|(_, length)| length.trim().parse::<usize>().ok())
        .unwrap_or(0);
    let body = buffer.get(end + 4..end + 4 + length)?;
    Some((status, String::from_utf8_lossy(body).into_owned()))
}
