mod codec;
mod session;
