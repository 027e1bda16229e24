//! Documents in tantivy, with an overlay in memory and the journal as its write-ahead log.
