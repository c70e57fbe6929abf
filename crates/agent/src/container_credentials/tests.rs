//! Requests with good, forged and outdated tokens.
