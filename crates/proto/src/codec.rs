//! A codec like that of `tonic_prost`, but with small initial buffers: each stream keeps two for
//! its lifetime, and most streams are idle.

use std::marker::PhantomData;

use prost::Message;
use tonic::codec::{BufferSettings, Codec};
use tonic_prost::{ProstCodec, ProstDecoder, ProstEncoder};

/// Initial size of a buffer, in bytes. It grows to the largest message.
const BUFFER: usize = 256;
/// Size at which buffered messages are sent, in bytes.
const SENT_AT_ONCE: usize = 32 << 10;

/// Encodes `T` and decodes `U`.
#[derive(Debug)]
pub(crate) struct SmallBuffers<T, U>(PhantomData<(T, U)>);

impl<T, U> Default for SmallBuffers<T, U> {
    fn default() -> Self {
        Self(PhantomData)
    }
}

impl<T, U> Codec for SmallBuffers<T, U>
where
    T: Message + Send + 'static,
    U: Message + Default + Send + 'static,
{
    type Encode = T;
    type Decode = U;
    type Encoder = ProstEncoder<T>;
    type Decoder = ProstDecoder<U>;

    fn encoder(&mut self) -> Self::Encoder {
        ProstCodec::<T, U>::raw_encoder(BufferSettings::new(BUFFER, SENT_AT_ONCE))
    }

    fn decoder(&mut self) -> Self::Decoder {
        ProstCodec::<T, U>::raw_decoder(BufferSettings::new(BUFFER, SENT_AT_ONCE))
    }
}

#[cfg(test)]
mod tests {
    use tonic::codec::{Decoder, Encoder};

    use super::*;
    use crate::v1;

    #[test]
    fn buffers_begin_small_and_messages_are_sent_together_in_both_directions() {
        // The settings compare by what they print: tonic keeps their fields to itself.
        let wanted = format!("{:?}", BufferSettings::new(256, 32_768));
        let mut codec = SmallBuffers::<v1::FromAgent, v1::ToAgent>::default();
        assert_eq!(format!("{:?}", codec.encoder().buffer_settings()), wanted);
        assert_eq!(format!("{:?}", codec.decoder().buffer_settings()), wanted);
    }
}
