//! Networks in CIDR notation.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

/// The addresses that share the first `prefix` bits of `first`. An IPv4-mapped IPv6 address (`::ffff:10.0.0.1`) is the
/// IPv4 address in it, whether it is written in a network or is where a client comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Network {
    first: IpAddr,
    prefix: u8,
}

impl Network {
    /// The network that has this address alone.
    pub fn of(address: IpAddr) -> Network {
        let first = address.to_canonical();
        Network {
            first,
            prefix: bits(first),
        }
    }

    /// The lowest address.
    pub fn first(self) -> IpAddr {
        self.first
    }

    pub fn contains(self, address: IpAddr) -> bool {
        let differ = match (self.first, address.to_canonical()) {
            (IpAddr::V4(first), IpAddr::V4(address)) => {
                u128::from(first.to_bits() ^ address.to_bits())
            }
            (IpAddr::V6(first), IpAddr::V6(address)) => first.to_bits() ^ address.to_bits(),
            _ => return false,
        };
        let host_bits = bits(self.first) - self.prefix;
        differ.checked_shr(host_bits.into()).unwrap_or(0) == 0
    }

    /// How many leading bits its addresses share: the larger, the smaller the network.
    pub fn prefix(self) -> u8 {
        self.prefix
    }

    /// For IPv4: the network address and the netmask. None for IPv6, and for networks that contain 0.0.0.0, which in
    /// the column of hosts means "no IPv4 address" (see [`crate::table::Columns`]).
    pub fn host_and_mask(self) -> Option<(u32, u32)> {
        let IpAddr::V4(first) = self.first else {
            return None;
        };
        let host_bits = bits(self.first) - self.prefix;
        let mask = u32::MAX.checked_shl(host_bits.into()).unwrap_or(0);
        (first.to_bits() != 0).then_some((first.to_bits(), mask))
    }

    fn host_bits_are_set(self) -> bool {
        let address = match self.first {
            // At the high end, as IPv6's bits are.
            IpAddr::V4(first) => u128::from(first.to_bits()) << MAPPED_BITS,
            IpAddr::V6(first) => first.to_bits(),
        };
        address.checked_shl(self.prefix.into()).unwrap_or(0) != 0
    }
}

/// How many bits such an address has.
fn bits(address: IpAddr) -> u8 {
    if address.is_ipv4() { 32 } else { 128 }
}

impl From<Network> for String {
    fn from(network: Network) -> String {
        network.to_string()
    }
}

impl TryFrom<String> for Network {
    type Error = String;

    fn try_from(text: String) -> Result<Network, String> {
        text.parse()
    }
}

/// Accepts what PostgreSQL's type `cidr` accepts, except abbreviations such as `10.1/16`. An address without a prefix
/// is a network of one address.
impl FromStr for Network {
    type Err = String;

    fn from_str(text: &str) -> Result<Network, String> {
        let (address, prefix) = text
            .split_once('/')
            .map_or((text, None), |(address, prefix)| (address, Some(prefix)));
        let invalid = || format!("\"{text}\" is not a network such as \"10.0.0.0/8\"");
        let mut first: IpAddr = address.parse().map_err(|_| invalid())?;
        let mut prefix = match prefix {
            Some(digits) if digits.bytes().all(|byte| byte.is_ascii_digit()) => {
                digits.parse().map_err(|_| invalid())?
            }
            Some(_) => return Err(invalid()),
            None => bits(first),
        };
        if prefix > bits(first) {
            return Err(format!("\"{text}\" has a prefix longer than its address"));
        }
        if first.is_ipv6() && first.to_canonical().is_ipv4() && prefix >= MAPPED_BITS {
            first = first.to_canonical();
            prefix -= MAPPED_BITS;
        }
        let network = Network { first, prefix };
        if network.host_bits_are_set() {
            return Err(format!(
                "\"{text}\" has bits set to the right of its prefix"
            ));
        }
        Ok(network)
    }
}

/// How many bits come before the IPv4 address in an IPv4-mapped IPv6 address.
const MAPPED_BITS: u8 = 96;

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.first, self.prefix)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn network(text: &str) -> Network {
        text.parse().expect(text)
    }

    fn contains(text: &str, address: &str) -> bool {
        network(text).contains(address.parse().expect(address))
    }

    #[test]
    fn a_network_contains_the_addresses_with_its_prefix() {
        assert!(contains("10.0.0.0/8", "10.255.0.1"));
        assert!(!contains("10.0.0.0/8", "11.0.0.0"));
        assert!(contains("10.1.2.3", "10.1.2.3") && !contains("10.1.2.3", "10.1.2.2"));
        assert!(contains("0.0.0.0/0", "255.255.255.255"));
        assert!(contains("2001:db8::/32", "2001:db8:ffff::1"));
        assert!(!contains("2001:db8::/33", "2001:db8:ffff::1"));
        assert!(contains("::1", "::1") && !contains("::1", "::2"));
    }

    #[test]
    fn families_do_not_mix_and_mapped_addresses_are_ipv4() {
        assert!(!contains("0.0.0.0/0", "::1") && !contains("::/0", "10.0.0.1"));
        assert!(contains("10.0.0.0/8", "::ffff:10.0.0.1") && !contains("::/0", "::ffff:10.0.0.1"));
        assert_eq!(network("::ffff:10.0.0.0/104"), network("10.0.0.0/8"));
        assert_eq!(
            Network::of("::ffff:10.0.0.1".parse().expect("mapped")),
            network("10.0.0.1/32")
        );
        assert!(contains("::/80", "::1") && !contains("::/80", "::ffff:10.0.0.1"));
    }

    #[test]
    fn an_error_names_the_text_that_is_no_network() {
        for bad in [
            "",
            "10",
            "10/8",
            "10.0.0.0/",
            "10.0.0.0/+8",
            "10.0.0.0/33",
            "::/129",
            "10.0.0.0/8/8",
            "10.0.0.0/999",
            "host",
        ] {
            let error = bad.parse::<Network>().expect_err(bad);
            assert!(error.contains(&format!("\"{bad}\"")), "{error}");
        }
        let error = "10.0.0.1/8".parse::<Network>().expect_err("host bits");
        assert_eq!(
            error,
            "\"10.0.0.1/8\" has bits set to the right of its prefix"
        );
        assert!("::1/127".parse::<Network>().is_err());
        assert!("0.0.0.1/0".parse::<Network>().is_err() && "0.0.0.0/0".parse::<Network>().is_ok());
    }

    #[test]
    fn a_network_is_displayed_as_it_was_written() {
        for text in [
            "10.0.0.0/8",
            "0.0.0.0/0",
            "::/0",
            "2001:db8::/32",
            "::1/128",
        ] {
            assert_eq!(network(text).to_string(), text);
        }
    }
}
