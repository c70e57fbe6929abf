//! The integration tests are the test targets of this package: `apiserver`, `netns`, `e2e` and
//! `nodes`.
