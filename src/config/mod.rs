//! The configuration (its builder lands it).

pub struct Config {}
