//! The configuration (its builder lands it).

pub struct Config {
    pub workers: Workers,
    pub limits: Limits,
}
pub struct Workers {
    pub writer: W,
    pub transport_manager: W,
    pub websocket: W,
}
pub struct W {
    pub prefetch: usize,
}
pub struct Limits {
    pub document_bytes: usize,
    pub connection_buffer_bytes: usize,
}
