//! Crashes, full disks.
