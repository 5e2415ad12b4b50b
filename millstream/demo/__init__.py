"""`millstream demo`: the main job from end to end, each step shown and checked."""
