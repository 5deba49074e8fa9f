use thenodes::config::ConfigDefaults;

impl Plugin for MyPlugin {
    fn early_config_defaults(&self) -> Option<ConfigDefaults> {
        Some(ConfigDefaults {
            // Advertise that this node can act as a relay
            capabilities: Some(vec!["relay".into(), "my-plugin-feature".into()]),
            ..Default::default()
        })
    }
}
