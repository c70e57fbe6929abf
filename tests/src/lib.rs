//! The integration tests are the three test targets of this package: `apiserver`, `netns` and `e2e`.
