"""Client-side components (st.components.v2): what has to move faster than a script run."""
