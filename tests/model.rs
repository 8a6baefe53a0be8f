//! The model: counts of the presets, the table, and configurations that cannot be.

use gaufre::model::{Config, ModelError, PRESETS, Table, preset};

#[test]
fn presets_have_the_published_counts() {
    let published = [
        ("gpt2", 124_439_808),
        ("gpt2-medium", 354_823_168),
        ("gpt2-large", 774_030_080),
        ("gpt2-xl", 1_557_611_200),
        ("cerebras-gpt-111m", 111_050_496),
        ("cerebras-gpt-256m", 255_977_024),
        ("cerebras-gpt-590m", 590_310_912),
        ("cerebras-gpt-1.3b", 1_315_723_264),
        ("cerebras-gpt-2.7b", 2_651_553_280),
        ("cerebras-gpt-6.7b", 6_658_404_352),
        ("cerebras-gpt-13b", 12_853_386_240),
        ("gpt3-xl", 1_315_723_264),
        ("gpt3-13b", 12_853_386_240),
        ("gpt3-175b", 174_604_259_328),
        ("gpt-j-6b", 6_050_882_784),
        ("gpt-neox-20b", 20_554_567_680),
        ("pythia-70m", 70_426_624),
        ("pythia-160m", 162_322_944),
        ("pythia-410m", 405_334_016),
        ("llama-3-8b", 8_030_261_248),
        ("llama-3.2-1b", 1_235_814_400),
        ("mistral-7b", 7_241_732_096),
        ("qwen3-0.6b", 596_049_920),
    ];
    for (name, count) in published {
        assert_eq!(Table::new(&preset(name).unwrap()).count(), count, "{name}");
    }
}

#[test]
fn every_preset_keeps_its_promise() {
    for (name, _) in PRESETS {
        let config = preset(name).unwrap();
        let promised = config.parameters;
        let config = config.with_vocabulary(65).unwrap();
        let count = Table::new(&config).count();
        assert!(promised == 0 || promised == count, "{name}: {promised} promised, {count} counted");
    }
}

#[test]
fn shakespeare_char_is_nanogpt_s() {
    let config = preset("shakespeare-char").unwrap().with_vocabulary(65).unwrap();
    assert_eq!((config.layers, config.heads, config.d_model, config.context, config.bias), (4, 4, 128, 64, false));
    let (d, v) = (128, 65);
    assert_eq!(Table::new(&config).count(), (v * d + 64 * d + 4 * (12 * d * d + 2 * d) + d) as u64);
}

#[test]
fn impossible_models_are_refused_by_name() {
    let base = "layers = 2\nheads = 3\nd_model = 48\ncontext = 16\n";
    assert!(Config::parse("good", base).is_ok());
    for (field, text) in [
        ("heads", base.replace("heads = 3", "heads = 5")),
        ("heads", base.replace("heads = 3", "heads = 1").replace("48", "512")),
        ("layers", base.replace("layers = 2", "layers = 0")),
        ("d_model", base.replace("48", "99999999999")),
        ("context", base.replace("16", "0")),
    ] {
        match Config::parse("bad", &text) {
            Err(ModelError::Impossible { field: found, .. }) => assert_eq!(found, field, "{text}"),
            other => panic!("{text}: {other:?}"),
        }
    }
    assert!(matches!(Config::parse("bad", &format!("{base}layer = 3")), Err(ModelError::Parse { .. })));
    let small = Config::parse("small", &format!("{base}vocab_size = 100")).unwrap();
    assert!(matches!(small.with_vocabulary(256), Err(ModelError::Impossible { field: "vocab_size", .. })));
}
