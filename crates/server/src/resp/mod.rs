//! The RESP front-end. (In progress.)
